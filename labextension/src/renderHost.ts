/** What answers need wherever they are shown: a renderer, words, and a way into the notebook. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import type { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { IRenderHost } from './components/host';
import { explain } from './errors';
import { placeCode, requireNotebook, type Place } from './notebooks';

export function makeRenderHost(
  app: JupyterFrontEnd,
  tracker: INotebookTracker,
  rendermime: IRenderMimeRegistry,
  trans: TranslationBundle
): IRenderHost {
  const place = async (code: string, where: Place | 'new'): Promise<void> => {
    if (where === 'new') {
      await newNotebook(app, code);
    } else if (where !== 'run' || (await mayRun(code, trans))) {
      await placeCode(requireNotebook(tracker), code, where);
    }
  };
  return { rendermime, trans, place: (code, where) => void place(code, where).catch(tell) };
}

/** Show an error that has no better place. */
export function tell(error: unknown): void {
  const { message, fix } = explain(error);
  Notification.error([message, fix].filter(Boolean).join(' '), { autoClose: 8000 });
}

async function newNotebook(app: JupyterFrontEnd, code: string): Promise<void> {
  const made = (await app.commands.execute('notebook:create-new', { kernelName: 'python3' })) as NotebookPanel;
  await made.context.ready;
  made.content.activeCell?.model.sharedModel.setSource(code);
}

/** Code of a model is run only if the user has seen it and says so. */
async function mayRun(code: string, trans: TranslationBundle): Promise<boolean> {
  const { button } = await showDialog({
    title: trans.__('Run this code of the model?'),
    body: code.length > 600 ? `${code.slice(0, 600)}…` : code,
    buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: trans.__('Run') })]
  });
  return button.accept;
}
