/** What the components need from outside of React. */
import type { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';
import type { ChatModel } from '../model';
import type { Place } from '../notebooks';
import type { IAttachment, IGemma } from '../tokens';

/** One thing that can stand after `@` or `/`. */
export interface ICandidate {
  insert: string;
  label: string;
  detail: string;
}

export interface IRenderHost {
  rendermime: IRenderMimeRegistry;
  trans: TranslationBundle;
  /** Put code into the notebook. */
  place(code: string, place: Place | 'new'): void;
}

export interface IPanelHost extends IRenderHost {
  gemma: IGemma;
  model: ChatModel;
  /** What can follow the sign that is typed. */
  candidates(sign: '@' | '/', query: string): Promise<ICandidate[]>;
  /** Attachments of what was dropped, pasted or chosen. */
  files(files: File[]): Promise<IAttachment[]>;
  transfer(transfer: DataTransfer): Promise<IAttachment[]>;
  /** Words of a clip. */
  transcribe(clip: IAttachment): Promise<string>;
  /** Run `/command rest`; whether it was one. */
  command(text: string, attachments: IAttachment[]): Promise<boolean>;
  chooseModel(anchor: HTMLElement): void;
}

export const RenderContext = React.createContext<IRenderHost | null>(null);
export const PanelContext = React.createContext<IPanelHost | null>(null);

export function useRender(): IRenderHost {
  return React.useContext(RenderContext) as IRenderHost;
}

export function usePanel(): IPanelHost {
  return React.useContext(PanelContext) as IPanelHost;
}
