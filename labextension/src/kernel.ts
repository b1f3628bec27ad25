/** What we read from a kernel: its variables, and one value as parts. No cell is run and nothing is shown. */
import { Kernel, KernelMessage } from '@jupyterlab/services';
import { GemmaError } from './errors';

export interface IVariable {
  name: string;
  type: string;
  note: string;
}

/** A value as jupyter_gemma.notebook.panel writes it. */
export interface IKernelPart {
  kind: 'text' | 'table' | 'image' | 'audio';
  note: string;
  mime?: string;
  data?: string;
  text?: string;
}

type Reply = Record<string, { status: string; data?: Record<string, unknown>; ename?: string; evalue?: string }>;

const HELPER = "__import__('jupyter_gemma.notebook.panel', fromlist=['panel'])";

/** The user's variables. A kernel without jupyter-gemma, or of another language, has none to offer. */
export async function variablesOf(kernel: Kernel.IKernelConnection): Promise<IVariable[]> {
  const { found } = await evaluate(kernel, { found: `${HELPER}.variables(globals())` });
  return (found?.data?.['application/json'] as IVariable[] | undefined) ?? [];
}

/** The value of `expression`: a table as a digest of at most `rows` rows, a figure as a picture, a clip as sound. */
export async function partsOf(
  kernel: Kernel.IKernelConnection,
  expression: string,
  rows: number,
  form: string
): Promise<IKernelPart[]> {
  const call = `${HELPER}.parts(${expression}, ${Math.round(rows)}, ${JSON.stringify(form)})`;
  const { found } = await evaluate(kernel, { found: call });
  if (found?.status === 'ok') {
    return (found.data?.['application/json'] as IKernelPart[] | undefined) ?? [];
  }
  if (found?.ename === 'ModuleNotFoundError') {
    throw new GemmaError(
      'The kernel of this notebook lacks jupyter-gemma, which reads variables for the model.',
      'Run in a cell: %pip install jupyter-gemma'
    );
  }
  throw new GemmaError(`@${expression} cannot be read: ${found?.ename ?? 'no reply'}: ${found?.evalue ?? ''}`);
}

/**
 * Evaluate Python expressions. A busy kernel would answer only when its cell ends, so the request goes to a
 * short-lived subshell wherever there are any; `kernel.status` cannot be trusted to tell which kernel is busy.
 */
async function evaluate(kernel: Kernel.IKernelConnection, expressions: Record<string, string>): Promise<Reply> {
  let subshellId: string | undefined;
  if (kernel.supportsSubshells) {
    const made = (await kernel.requestCreateSubshell({}).done) as KernelMessage.ICreateSubshellReplyMsg;
    subshellId = made.content.subshell_id;
  }
  try {
    const message = KernelMessage.createMessage<KernelMessage.IExecuteRequestMsg>({
      msgType: 'execute_request',
      channel: 'shell',
      username: kernel.username,
      session: kernel.clientId,
      subshellId,
      content: {
        code: '',
        silent: true,
        store_history: false,
        allow_stdin: false,
        stop_on_error: false,
        user_expressions: expressions
      }
    });
    const reply = (await kernel.sendShellMessage(message, true, true).done) as KernelMessage.IExecuteReplyMsg;
    return reply.content.status === 'ok' ? (reply.content.user_expressions as Reply) : {};
  } finally {
    if (subshellId) {
      await kernel.requestDeleteSubshell({ subshell_id: subshellId }).done;
    }
  }
}
