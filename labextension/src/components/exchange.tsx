import {
  caretDownEmptyThinIcon,
  caretUpEmptyThinIcon,
  codeIcon,
  copyIcon,
  editIcon,
  refreshIcon
} from '@jupyterlab/ui-components';
import { Dialog, showDialog } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';
import * as React from 'react';
import { progressWords, tokensOf } from '../answer';
import { explain } from '../errors';
import type { IExchange, IRendered } from '../tokens';
import { Answer } from './answer';
import { IconButton } from './button';
import { Chips } from './chips';
import { usePanel } from './host';

export interface IExchangeProps {
  exchange: IExchange;
  running: boolean;
  /** Changes whenever the exchange does: it is changed in place. */
  version: string;
}

/** A question and the answer that is shown of those it got. */
export const Exchange = React.memo(function Exchange({ exchange, running }: IExchangeProps): JSX.Element {
  const { model, trans } = usePanel();
  const [editing, setEditing] = React.useState(false);
  const answer = exchange.answers[exchange.shown];
  const waiting = model.progress ? progressWords(model.progress) : trans.__('reading…');
  return (
    <section className="jg-Exchange" aria-label={exchange.text || trans.__('Question')}>
      {editing ? (
        <Editing exchange={exchange} onDone={() => setEditing(false)} />
      ) : (
        <Question exchange={exchange} onEdit={() => setEditing(true)} />
      )}
      {answer && (
        <Answer answer={answer} running={running} waiting={waiting}>
          {!running && <AnswerButtons exchange={exchange} />}
        </Answer>
      )}
    </section>
  );
});

function Question({ exchange, onEdit }: { exchange: IExchange; onEdit: () => void }): JSX.Element {
  const { model, trans } = usePanel();
  return (
    <div className="jg-Question">
      <Chips items={exchange.attachments} />
      {exchange.text && (
        <p className="jg-Question-text" tabIndex={0}>
          {exchange.text}
        </p>
      )}
      <span className="jg-Question-buttons">
        <IconButton icon={editIcon} label={trans.__('Edit and ask again')} disabled={model.busy} onClick={onEdit} />
      </span>
    </div>
  );
}

function Editing({ exchange, onDone }: { exchange: IExchange; onDone: () => void }): JSX.Element {
  const { model, trans } = usePanel();
  const [text, setText] = React.useState(exchange.text);
  const send = () => {
    onDone();
    void model.edit(exchange, text);
  };
  const onKeyDown = (event: React.KeyboardEvent) => {
    if (event.key === 'Escape') {
      onDone();
    } else if (event.key === 'Enter' && !event.shiftKey) {
      event.preventDefault();
      send();
    }
  };
  return (
    <div className="jg-Editing">
      <textarea
        autoFocus
        aria-label={trans.__('Edit the question')}
        value={text}
        onChange={event => setText(event.target.value)}
        onKeyDown={onKeyDown}
      />
      <div className="jg-Row">
        <button type="button" className="jg-Button" onClick={onDone}>
          {trans.__('Cancel')}
        </button>
        <button type="button" className="jg-Button jg-mod-accept" disabled={!text.trim()} onClick={send}>
          {trans.__('Ask again')}
        </button>
      </div>
    </div>
  );
}

function AnswerButtons({ exchange }: { exchange: IExchange }): JSX.Element {
  const { model, trans } = usePanel();
  const { answers, shown } = exchange;
  const copy = () => void navigator.clipboard.writeText(answers[shown].text);
  return (
    <>
      {answers.length > 1 && (
        <span className="jg-Versions">
          <IconButton
            icon={caretUpEmptyThinIcon}
            label={trans.__('Earlier answer')}
            disabled={shown === 0}
            onClick={() => model.show(exchange, shown - 1)}
          />
          <span>{`${shown + 1}/${answers.length}`}</span>
          <IconButton
            icon={caretDownEmptyThinIcon}
            label={trans.__('Later answer')}
            disabled={shown === answers.length - 1}
            onClick={() => model.show(exchange, shown + 1)}
          />
        </span>
      )}
      <IconButton icon={copyIcon} label={trans.__('Copy answer')} onClick={copy} />
      <PromptButton exchange={exchange} />
      <IconButton
        icon={refreshIcon}
        label={trans.__('Answer again')}
        disabled={model.busy}
        onClick={() => void model.regenerate(exchange)}
      />
    </>
  );
}

function PromptButton({ exchange }: { exchange: IExchange }): JSX.Element {
  const { model, trans } = usePanel();
  const show = async () => {
    const body = await model.prompt(exchange).then(promptNode, error => messageNode(explain(error).message));
    const buttons = [Dialog.okButton({ label: trans.__('Close') })];
    await showDialog({ title: trans.__('The exact prompt'), body: new Widget({ node: body }), buttons });
  };
  return <IconButton icon={codeIcon} label={trans.__('Show the exact prompt')} onClick={() => void show()} />;
}

function promptNode(rendered: IRendered): HTMLElement {
  const node = messageNode(tokensOf(rendered));
  const prompt = document.createElement('pre');
  prompt.className = 'jg-Prompt';
  prompt.tabIndex = 0;
  prompt.textContent = rendered.prompt;
  node.append(prompt);
  return node;
}

function messageNode(words: string): HTMLElement {
  const node = document.createElement('div');
  const line = document.createElement('p');
  line.textContent = words;
  node.append(line);
  return node;
}
