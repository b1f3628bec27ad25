import type { ISignal } from '@lumino/signaling';
import { caretDownEmptyIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { explain } from '../errors';
import { attachIcon, sendIcon, stopIcon } from '../icons';
import type { IAttachment } from '../tokens';
import { IconButton } from './button';
import { Chips } from './chips';
import { CompletionList, LIST_ID, useCompletions } from './completions';
import { useEvent, useSignal } from './hooks';
import { usePanel, type IPanelHost } from './host';
import { Microphone } from './microphone';

export interface IDraft {
  attachments: IAttachment[];
  text?: string;
}

export interface IComposerProps {
  /** Puts something into the composer. */
  drafts: ISignal<unknown, IDraft>;
}

/** Where a question is made: words, mentions, attachments, voice. */
export function Composer({ drafts }: IComposerProps): JSX.Element {
  const host = usePanel();
  const { model, trans } = host;
  const area = React.useRef<HTMLTextAreaElement>(null);
  const draft = useDraft(area, drafts);
  const { text, caret, items, problem, write, take } = draft;
  const completions = useCompletions(text, caret, ({ from }, insert) =>
    write(text.slice(0, from) + insert + text.slice(caret), from + insert.length)
  );
  const isEmpty = !text.trim() && !items.length;
  const send = () => {
    if (!model.busy && !isEmpty) {
      draft.clear();
      ask(host, text, items).catch(draft.fail);
    }
  };
  const onKeyDown = (event: React.KeyboardEvent) => {
    if (!completions.onKey(event) && event.key === 'Enter' && !event.shiftKey && !event.nativeEvent.isComposing) {
      event.preventDefault();
      send();
    }
  };
  const onPaste = (event: React.ClipboardEvent) => {
    const files = [...event.clipboardData.files];
    if (files.length) {
      event.preventDefault();
      take(host.files(files));
    }
  };
  return (
    <div className="jg-Composer">
      <CompletionList {...completions} />
      {problem && (
        <div className="jg-Error" role="alert">
          {problem}
        </div>
      )}
      <div className="jg-Composer-box">
        <Chips items={items} onRemove={draft.remove} />
        <textarea
          ref={area}
          rows={1}
          value={text}
          aria-label={trans.__('Message')}
          aria-autocomplete="list"
          aria-controls={completions.items.length ? LIST_ID : undefined}
          aria-activedescendant={completions.items.length ? `${LIST_ID}-${completions.active}` : undefined}
          placeholder={trans.__('Ask…  @ to name, / for commands')}
          onChange={event => draft.type(event.target.value, event.target.selectionStart)}
          onSelect={event => draft.setCaret(event.currentTarget.selectionStart)}
          onKeyDown={onKeyDown}
          onPaste={onPaste}
        />
        <div className="jg-Composer-bar">
          <FileButton onFiles={files => take(host.files(files))} />
          <Microphone
            onClip={clip => take(Promise.resolve([clip]))}
            onWords={words => write(text ? `${text.trimEnd()} ${words}` : words)}
            onProblem={draft.warn}
          />
          <ModelButton />
          <SendButton disabled={isEmpty} onSend={send} />
        </div>
      </div>
    </div>
  );
}

interface IDraftState {
  text: string;
  caret: number;
  items: IAttachment[];
  problem: string;
  /** What the user did to the text. */
  type: (text: string, caret: number) => void;
  setCaret: (caret: number) => void;
  /** Set the text and put the caret there. */
  write: (text: string, caret?: number) => void;
  take: (found: Promise<IAttachment[]>) => void;
  remove: (item: IAttachment) => void;
  clear: () => void;
  warn: (words: string) => void;
  fail: (error: unknown) => void;
}

/** What stands in the composer. */
function useDraft(area: React.RefObject<HTMLTextAreaElement>, drafts: IComposerProps['drafts']): IDraftState {
  const [text, setText] = React.useState('');
  const [caret, setCaret] = React.useState(0);
  const [items, setItems] = React.useState<IAttachment[]>([]);
  const [problem, warn] = React.useState('');
  const type = (value: string, at: number) => {
    setText(value);
    setCaret(at);
  };
  const write = (value: string, at = value.length) => {
    type(value, at);
    requestAnimationFrame(() => area.current?.setSelectionRange(at, at));
  };
  const fail = (error: unknown) => warn(words(error));
  const add = (found: IAttachment[]) => setItems(before => [...before, ...found]);
  const take = (found: Promise<IAttachment[]>) => {
    warn('');
    found.then(add, fail);
  };
  const remove = (item: IAttachment) => setItems(before => before.filter(other => other !== item));
  const clear = () => {
    warn('');
    write('');
    setItems([]);
  };
  const onDraft = useEvent((_: unknown, draft: IDraft) => {
    add(draft.attachments);
    if (draft.text !== undefined) {
      write(draft.text);
    }
    area.current?.focus();
  });
  React.useEffect(() => {
    drafts.connect(onDraft);
    return () => void drafts.disconnect(onDraft);
  }, [drafts, onDraft]);
  React.useLayoutEffect(() => {
    if (area.current) {
      area.current.style.height = 'auto';
      area.current.style.height = `${area.current.scrollHeight}px`;
    }
  }, [area, text]);
  return { text, caret, items, problem, type, setCaret, write, take, remove, clear, warn, fail };
}

function words(error: unknown): string {
  const { message, fix } = explain(error);
  return [message, fix].filter(Boolean).join(' ');
}

async function ask(host: IPanelHost, text: string, items: IAttachment[]): Promise<void> {
  if (!(await host.command(text, items))) {
    await host.model.send(text, items);
  }
}

function SendButton({ disabled, onSend }: { disabled: boolean; onSend: () => void }): JSX.Element {
  const { model, trans } = usePanel();
  return model.busy ? (
    <IconButton icon={stopIcon} className="jg-mod-send" label={trans.__('Stop')} onClick={() => model.stop()} />
  ) : (
    <IconButton icon={sendIcon} className="jg-mod-send" label={trans.__('Send')} disabled={disabled} onClick={onSend} />
  );
}

function FileButton({ onFiles }: { onFiles: (files: File[]) => void }): JSX.Element {
  const { trans } = usePanel();
  const input = React.useRef<HTMLInputElement>(null);
  return (
    <>
      <input
        ref={input}
        type="file"
        multiple
        hidden
        onChange={event => {
          onFiles([...(event.target.files ?? [])]);
          event.target.value = '';
        }}
      />
      <IconButton icon={attachIcon} label={trans.__('Attach files')} onClick={() => input.current?.click()} />
    </>
  );
}

/** Which model is asked; chooses another. */
function ModelButton(): JSX.Element {
  const { gemma, chooseModel, trans } = usePanel();
  useSignal(gemma.server.changed);
  const name = gemma.server.chosen || gemma.server.status.model;
  return (
    <button
      type="button"
      className="jg-Model"
      title={trans.__('Choose a model')}
      onClick={event => chooseModel(event.currentTarget)}
    >
      <span>{name || trans.__('model')}</span>
      <caretDownEmptyIcon.react tag="span" aria-hidden="true" />
    </button>
  );
}
