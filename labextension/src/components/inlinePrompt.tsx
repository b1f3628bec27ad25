import { closeIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { collect, newAnswer, progressWords } from '../answer';
import { diffLines } from '../diff';
import { explain } from '../errors';
import { gemmaIcon } from '../icons';
import { firstCode } from '../markdown';
import type { IChunk } from '../tokens';
import { Notice } from './answer';
import { IconButton } from './button';
import { useRender } from './host';

/** An answer as it comes, and what users of its model must know. */
export interface IOffer {
  chunks: AsyncGenerator<IChunk>;
  notice: string;
}

export interface IInlinePromptProps {
  title: string;
  /** The cell's source; "" to write a new cell. */
  source: string;
  /** Asked at once, without waiting for words of the user. */
  instruction: string;
  ask: (instruction: string, signal: AbortSignal) => Promise<IOffer>;
  accept: (code: string) => void;
  close: () => void;
}

type State = 'idle' | 'asking' | 'offered';

/** Asks for code and shows it as a difference; nothing changes until it is accepted. */
export function InlinePrompt(props: IInlinePromptProps): JSX.Element {
  const { trans } = useRender();
  const [words, setWords] = React.useState(props.instruction);
  const { state, text, status, notice, problem, run, stop } = useCode(props);
  const code = text && firstCode(text);
  const onKeyDown = (event: React.KeyboardEvent) => {
    if (event.key === 'Escape') {
      props.close();
    } else if (event.key === 'Enter' && !event.shiftKey && state !== 'asking') {
      event.preventDefault();
      void run(words);
    }
  };
  return (
    <div className="jg-Inline" role="dialog" aria-label={props.title} onKeyDown={onKeyDown}>
      <div className="jg-Inline-head">
        <gemmaIcon.react tag="span" className="jg-Answer-mark" aria-hidden="true" />
        <input
          autoFocus
          className="jg-Inline-input"
          aria-label={props.title}
          placeholder={props.title}
          value={words}
          onChange={event => setWords(event.target.value)}
        />
        <span className="jg-Inline-status" role="status">
          {status}
        </span>
        <IconButton icon={closeIcon} label={trans.__('Close')} onClick={props.close} />
      </div>
      {problem && (
        <div className="jg-Error" role="alert">
          {problem}
        </div>
      )}
      {code && <Diff before={props.source} after={code} />}
      {code && <Notice text={notice} />}
      {state !== 'idle' && (
        <div className="jg-Row">
          {state === 'asking' ? (
            <button type="button" className="jg-Button" onClick={stop}>
              {trans.__('Stop')}
            </button>
          ) : (
            <>
              <button type="button" className="jg-Button" onClick={props.close}>
                {trans.__('Discard')}
              </button>
              <button type="button" className="jg-Button jg-mod-accept" onClick={() => props.accept(code)}>
                {trans.__('Accept')}
              </button>
            </>
          )}
        </div>
      )}
    </div>
  );
}

interface ICode {
  state: State;
  text: string;
  status: string;
  notice: string;
  problem: string;
  run: (words: string) => Promise<void>;
  stop: () => void;
}

/** Asks, and gives the code as it comes. */
function useCode({ ask, instruction }: IInlinePromptProps): ICode {
  const { trans } = useRender();
  const [state, setState] = React.useState<State>('idle');
  const [text, setText] = React.useState('');
  const [status, setStatus] = React.useState('');
  const [notice, setNotice] = React.useState('');
  const [problem, setProblem] = React.useState('');
  const abort = React.useRef<AbortController | null>(null);
  const run = async (words: string) => {
    const answer = newAnswer();
    const control = (abort.current = new AbortController());
    setProblem('');
    setText('');
    setState('asking');
    setStatus(trans.__('writing…'));
    try {
      const offer = await ask(words, control.signal);
      setNotice(offer.notice);
      for await (const progress of collect(offer.chunks, answer)) {
        setStatus(progress ? progressWords(progress) : trans.__('writing…'));
        setText(answer.text);
      }
    } catch (error) {
      if (!control.signal.aborted) {
        setProblem(explain(error).message);
      }
    }
    setStatus('');
    setState(answer.text ? 'offered' : 'idle');
  };
  const stop = () => abort.current?.abort();
  const first = React.useRef(instruction ? run : null);
  React.useEffect(() => {
    void first.current?.(instruction);
    return () => abort.current?.abort();
  }, [instruction]);
  return { state, text, status, notice, problem, run, stop };
}

/** Two texts, line by line; colour is not the only mark. */
function Diff({ before, after }: { before: string; after: string }): JSX.Element {
  const { trans } = useRender();
  const marks = { same: ' ', added: '+', removed: '-' };
  return (
    <pre className="jg-Diff" aria-label={trans.__('Changes')} tabIndex={0}>
      {diffLines(before, after).map((line, index) => (
        <div key={index} data-kind={line.kind}>
          {`${marks[line.kind]} ${line.text}`}
        </div>
      ))}
    </pre>
  );
}
