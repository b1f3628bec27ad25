import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';
import { progressWords } from '../answer';
import { gemmaIcon } from '../icons';
import type { IServer, IServerStatus } from '../tokens';
import { useSignal } from './hooks';

export interface IStatusProps {
  server: IServer;
  trans: TranslationBundle;
  onClick: (anchor: HTMLElement) => void;
}

/** The state of the model, in the status bar. */
export function Status({ server, trans, onClick }: IStatusProps): JSX.Element {
  useSignal(server.changed);
  const { status } = server;
  const words = statusWords(status, trans);
  const fix = status.error ? `${status.error.message} ${status.error.fix ?? ''}` : '';
  return (
    <button
      type="button"
      className="jg-Status"
      data-state={status.state}
      title={fix || trans.__('Gemma: load, unload, choose a model')}
      onClick={event => onClick(event.currentTarget)}
    >
      <gemmaIcon.react tag="span" className="jg-Status-mark" aria-hidden="true" />
      <span>{words}</span>
    </button>
  );
}

/** What the server does, in a few words. */
export function statusWords(status: IServerStatus, trans: TranslationBundle): string {
  const { model, progress, queue, memory_bytes, engine } = status;
  const memory = memory_bytes ? ` · ${(memory_bytes / 2 ** 30).toFixed(1)} GB` : '';
  const waiting = queue ? trans.__(' · %1 waiting', queue) : '';
  const speed = engine?.tokens_per_second ? ` · ${Math.round(engine.tokens_per_second)} tokens/s` : '';
  switch (status.state) {
    case 'ready':
      return `${model}${memory}`;
    case 'busy':
      return `${model} ${trans.__('answers')}${speed}${waiting}`;
    case 'loading':
      return progress ? progressWords(progress) : trans.__('loading %1', model);
    case 'empty':
      return trans.__('no model loaded');
    case 'remote':
      return trans.__('%1 elsewhere', model || 'Gemma');
    case 'error':
      return trans.__('model failed');
    case 'missing':
      return trans.__('server extension missing');
    case 'stopping':
      return trans.__('stopping');
    case 'stopped':
      return trans.__('starts when asked');
    default:
      return 'Gemma';
  }
}
