import { addIcon, closeIcon } from '@jupyterlab/ui-components';
import type { ISignal } from '@lumino/signaling';
import * as React from 'react';
import { gemmaIcon, historyIcon } from '../icons';
import type { IExchange } from '../tokens';
import { IconButton } from './button';
import { Composer, type IDraft } from './composer';
import { Conversations } from './conversations';
import { Exchange } from './exchange';
import { useSignal } from './hooks';
import { PanelContext, RenderContext, usePanel, type IPanelHost } from './host';

// A frame has room for other work if a growing answer is drawn this often.
const STREAM_MS = 90;
const NEAR_END = 80;

/** The whole panel. */
export function PanelView({ host, drafts }: { host: IPanelHost; drafts: ISignal<unknown, IDraft> }): JSX.Element {
  return (
    <PanelContext.Provider value={host}>
      <RenderContext.Provider value={host}>
        <Layout drafts={drafts} />
      </RenderContext.Provider>
    </PanelContext.Provider>
  );
}

function Layout({ drafts }: { drafts: ISignal<unknown, IDraft> }): JSX.Element {
  const { model, gemma, trans } = usePanel();
  const [listed, setListed] = React.useState(false);
  useSignal(model.changed);
  useSignal(gemma.server.changed);
  const { problem } = model;
  return (
    <>
      <header className="jg-Header">
        <h2 className="jg-Header-title">{model.current.title || trans.__('New conversation')}</h2>
        <IconButton
          icon={historyIcon}
          label={trans.__('Conversations')}
          pressed={listed}
          onClick={() => setListed(!listed)}
        />
        <IconButton icon={addIcon} label={trans.__('New conversation')} onClick={() => model.create()} />
      </header>
      {gemma.server.mismatch && (
        <div className="jg-Error" role="alert">
          {trans.__('The server extension has version %1: restart JupyterLab.', gemma.server.mismatch)}
        </div>
      )}
      {problem && (
        <div className="jg-Error" role="alert">
          <strong>{problem.message}</strong> {problem.fix}
          <IconButton icon={closeIcon} label={trans.__('Close')} onClick={() => model.dismiss()} />
        </div>
      )}
      {listed ? <Conversations onClose={() => setListed(false)} /> : <Transcript />}
      <Composer drafts={drafts} />
    </>
  );
}

/** Questions and answers; follows a growing answer unless the user has scrolled up. */
function Transcript(): JSX.Element {
  const { model, trans } = usePanel();
  const node = React.useRef<HTMLDivElement>(null);
  const follows = React.useRef(true);
  useSignal(model.streamed, STREAM_MS);
  const { exchanges } = model.current;
  React.useLayoutEffect(() => {
    if (follows.current && node.current) {
      node.current.scrollTop = node.current.scrollHeight;
    }
  });
  const onScroll = () => {
    const { scrollHeight, scrollTop, clientHeight } = node.current as HTMLDivElement;
    follows.current = scrollHeight - scrollTop - clientHeight < NEAR_END;
  };
  return (
    <div
      ref={node}
      className="jg-Transcript"
      role="log"
      aria-live="polite"
      aria-label={trans.__('Conversation')}
      tabIndex={0}
      onScroll={onScroll}
    >
      {exchanges.map((exchange, index) => {
        const running = model.busy && index === exchanges.length - 1;
        return (
          <Exchange key={exchange.id} exchange={exchange} running={running} version={versionOf(exchange, model)} />
        );
      })}
      {!exchanges.length && <Empty />}
    </div>
  );
}

/** A word that differs whenever an exchange, which is changed in place, has to be drawn again. */
function versionOf(exchange: IExchange, { busy, progress }: IPanelHost['model']): string {
  const answer = exchange.answers[exchange.shown];
  const parts = [exchange.text, exchange.attachments.length, exchange.shown, exchange.answers.length, busy];
  return [
    ...parts,
    answer?.text.length,
    answer?.thinking.length,
    answer?.finish,
    progress?.phase,
    progress?.done
  ].join();
}

/** What a newcomer sees. */
function Empty(): JSX.Element {
  const { gemma, command, trans } = usePanel();
  const offers: [string, string][] = [
    [trans.__('Explain the last plot'), '/explain'],
    [trans.__('Transcribe the last clip'), '/transcribe']
  ];
  // The small ones know only the words of their training.
  if (gemma.server.resident?.extras) {
    offers.push([trans.__('Fix the last error'), '/fix'], [trans.__('What is in this notebook?'), '/summarise']);
  }
  const { error } = gemma.server.status;
  return (
    <div className="jg-Empty">
      <gemmaIcon.react tag="span" className="jg-Empty-mark" aria-hidden="true" />
      <h3>{trans.__('Ask your notebook')}</h3>
      <p>{trans.__('Plots, tables, sound and cells go to a model on this machine. Nothing leaves it.')}</p>
      <div className="jg-Offers">
        {offers.map(([words, line]) => (
          <button type="button" key={line} className="jg-Offer" onClick={() => void command(line, [])}>
            {words}
          </button>
        ))}
      </div>
      <p className="jg-Empty-hint">
        {trans.__('Type @ to name a variable or cell, / for commands, or drop a picture.')}
      </p>
      {error && (
        <div className="jg-Error" role="alert">
          <strong>{error.message}</strong> {error.fix}
        </div>
      )}
    </div>
  );
}
