import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IConsoleTracker } from '@jupyterlab/console';
import { INotebookTracker, NotebookActions, type NotebookPanel } from '@jupyterlab/notebook';
import { listen, type IInsertion, type INotebooks } from '../insertion';
import { placeCode } from '../notebooks';

/** Places cells for answers with buttons, which live in the kernel. */
export const insertionPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:insertion',
  description: 'Places a new cell where an answer with buttons asks for it.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [IConsoleTracker],
  activate: (app: JupyterFrontEnd, tracker: INotebookTracker, consoles: IConsoleTracker | null): void => {
    const notebooks: INotebooks = {
      find: (kernelId, cell) =>
        tracker.find(panel => panel.sessionContext.session?.kernel?.id === kernelId && indexOf(panel, cell) >= 0),
      place
    };
    for (const opened of [tracker, consoles]) {
      opened?.forEach(({ sessionContext }) => listen(sessionContext, notebooks));
      opened?.widgetAdded.connect((_, { sessionContext }) => listen(sessionContext, notebooks));
    }
  }
};

function indexOf({ content }: NotebookPanel, id: string): number {
  return content.widgets.findIndex(cell => cell.model.id === id);
}

async function place(panel: NotebookPanel, { cell, cell_type, source }: IInsertion): Promise<void> {
  panel.content.activeCellIndex = indexOf(panel, cell);
  await placeCode(panel, source ?? '', 'below');
  if (cell_type === 'markdown') {
    NotebookActions.changeCellType(panel.content, cell_type);
  }
}
