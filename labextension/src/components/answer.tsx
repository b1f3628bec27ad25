import * as React from 'react';
import { speedOf, tokensOf } from '../answer';
import { gemmaIcon } from '../icons';
import type { IAnswer } from '../tokens';
import { useRender } from './host';
import { Markdown } from './markdown';

export interface IAnswerProps {
  answer: IAnswer;
  /** It is being written. */
  running: boolean;
  /** What is said before the first word. */
  waiting?: string;
  /** Buttons. */
  children?: React.ReactNode;
}

/** One answer: thinking folded, the text, how it ended, what it cost. */
export function Answer(props: IAnswerProps): JSX.Element {
  const { trans } = useRender();
  const { answer, running } = props;
  return (
    <article className="jg-Answer" data-running={running} aria-busy={running}>
      <header className="jg-Answer-head">
        <gemmaIcon.react tag="span" className="jg-Answer-mark" aria-hidden="true" />
        <span className="jg-Answer-title">{answer.model || trans.__('Gemma')}</span>
        <span className="jg-Answer-buttons">{props.children}</span>
      </header>
      <Thinking text={answer.thinking} open={running && !answer.text} />
      {answer.text ? <Markdown text={answer.text} /> : running && <Waiting words={props.waiting} />}
      <Ending answer={answer} running={running} />
    </article>
  );
}

function Waiting({ words }: { words?: string }): JSX.Element {
  return (
    <div className="jg-Waiting">
      <span className="jg-Dots" aria-hidden="true">
        <i />
        <i />
        <i />
      </span>
      {words}
    </div>
  );
}

function Thinking({ text, open }: { text: string; open: boolean }): JSX.Element | null {
  const { trans } = useRender();
  return text ? (
    <details className="jg-Thinking" open={open}>
      <summary>{trans.__('Thinking')}</summary>
      <p>{text}</p>
    </details>
  ) : null;
}

function Ending({ answer, running }: { answer: IAnswer; running: boolean }): JSX.Element | null {
  const { trans } = useRender();
  if (running) {
    return null;
  }
  const { error, finish, usage, notice } = answer;
  const speed = speedOf(usage);
  const facts = [
    finish === 'cancelled' ? trans.__('stopped') : finish === 'length' ? trans.__('cut at the token limit') : '',
    tokensOf(usage) && trans.__('read %1 tokens', tokensOf(usage)),
    usage?.completion_tokens ? trans.__('wrote %1', usage.completion_tokens) : '',
    speed ? trans.__('%1 tokens/s', speed < 10 ? speed.toFixed(1) : Math.round(speed)) : ''
  ].filter(Boolean);
  return (
    <>
      {error && (
        <div className="jg-Error" role="alert">
          <strong>{error.message}</strong>
          {error.fix && <span> {error.fix}</span>}
        </div>
      )}
      {facts.length > 0 && <div className="jg-Facts">{facts.join(' · ')}</div>}
      {answer.text && <Notice text={notice} />}
    </>
  );
}

/** What users of the model must know; what stands in backquotes is code. */
export function Notice({ text }: { text: string }): JSX.Element | null {
  const pieces = text.split('`').map((piece, index) => (index % 2 ? <code key={index}>{piece}</code> : piece));
  return text ? <div className="jg-Notice">{pieces}</div> : null;
}
