/** New cells that the kernel asks for, below the cell that ran: the button "Insert cell" of an answer with buttons. */
import type { ISessionContext } from '@jupyterlab/apputils';
import type { CellType } from '@jupyterlab/nbformat';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Kernel, KernelMessage } from '@jupyterlab/services';

/** The comm's name, as in jupyter_gemma/notebook/inserting.py. */
const TARGET = 'jupyter_gemma.cells';

/** Without a source only the question whether the cell is here. */
export interface IInsertion {
  cell: string;
  cell_type?: CellType;
  source?: string;
}

export interface INotebooks {
  /** The notebook of that kernel with that cell in it. */
  find(kernelId: string, cell: string): NotebookPanel | undefined;
  place(panel: NotebookPanel, insertion: IInsertion): Promise<void>;
}

/**
 * Answer what the kernels of `context` ask, each after the other. Of all that is open on a kernel only one gets its
 * comms, which may be another notebook or a console.
 */
export function listen(context: ISessionContext, notebooks: INotebooks): void {
  const register = (kernel?: Kernel.IKernelConnection | null) => {
    if (kernel?.handleComms) {
      kernel.registerCommTarget(TARGET, (comm, message) => answer(kernel.id, comm, message, notebooks));
    }
  };
  context.kernelChanged.connect((_, { newValue }) => register(newValue));
  register(context.session?.kernel);
}

async function answer(
  kernelId: string,
  comm: Kernel.IComm,
  { content }: KernelMessage.ICommOpenMsg,
  notebooks: INotebooks
): Promise<void> {
  const insertion = content.data as unknown as IInsertion;
  const panel = notebooks.find(kernelId, insertion.cell);
  if (panel && insertion.source === undefined) {
    comm.send({ here: true });
  } else if (panel && document.hasFocus()) {
    // The button was pressed here; another tab may show the same notebook.
    await notebooks.place(panel, insertion);
  }
}
