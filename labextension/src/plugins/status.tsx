import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';
import { Status } from '../components/status';
import { openModelMenu } from '../serverMenu';
import { IGemma } from '../tokens';

/** The model's state in the status bar. */
export const statusPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:status',
  description: 'Shows in the status bar what the model does.',
  autoStart: true,
  requires: [IGemma],
  optional: [IStatusBar, ITranslator],
  activate: (app: JupyterFrontEnd, gemma: IGemma, bar: IStatusBar | null, translator: ITranslator | null): void => {
    const trans = (translator ?? nullTranslator).load('jupyter_gemma');
    const open = (anchor: HTMLElement) => openModelMenu(app.commands, gemma, trans, anchor);
    const item = ReactWidget.create(<Status server={gemma.server} trans={trans} onClick={open} />);
    bar?.registerStatusItem('jupyter-gemma:status', { item, align: 'right', rank: 50 });
  }
};
