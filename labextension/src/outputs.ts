/** What stands in a cell's outputs, and answers that are written under them. */
import type { CodeCell } from '@jupyterlab/cells';
import type { IDisplayData, IOutput } from '@jupyterlab/nbformat';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { IOutputModel } from '@jupyterlab/rendermime';
import { audioAttachment, imageAttachment, svgAttachment, textAttachment, uriAttachment } from './attach';
import { partsOf } from './kernel';
import { harmless } from './markdown';
import { pictureOf } from './rasterise';
import type { IAnswer, IAttachment } from './tokens';
import { UUID } from '@lumino/coreutils';

export const ANSWER_MIME = 'application/vnd.jupyter-gemma.answer+json';

export type OutputKind = 'picture' | 'audio' | 'table' | 'error' | 'answer' | 'text';

/** One output of a cell. */
export interface ITarget {
  panel: NotebookPanel;
  cell: CodeCell;
  index: number;
}

/** What is saved of an answer in the notebook. */
export interface ISavedAnswer extends IAnswer {
  id: string;
  action: string;
  about: OutputKind;
}

const PICTURES = ['image/png', 'image/jpeg', 'image/webp', 'image/gif'];
const DRAWN = /^application\/vnd\.(plotly|vega|vegalite|bokehjs)/;

export function outputOf({ cell, index }: ITarget): IOutputModel {
  return cell.outputArea.model.get(index);
}

export function kindOf(output: IOutputModel): OutputKind {
  const { data } = output;
  const keys = Object.keys(data);
  const html = textOf(data['text/html']);
  if (keys.includes(ANSWER_MIME)) {
    return 'answer';
  }
  if (output.type === 'error') {
    return 'error';
  }
  if (keys.some(key => PICTURES.includes(key) || key === 'image/svg+xml' || DRAWN.test(key))) {
    return 'picture';
  }
  if (keys.some(key => key.startsWith('audio/')) || /<audio[\s>]/.test(html)) {
    return 'audio';
  }
  if (/<table[^>]*class="[^"]*dataframe/.test(html) || keys.some(key => key.includes('dataresource'))) {
    return 'table';
  }
  return /<(canvas|svg|img)[\s>]/.test(html) ? 'picture' : 'text';
}

export function textOf(value: unknown): string {
  return Array.isArray(value) ? value.join('') : typeof value === 'string' ? value : '';
}

/** What goes to the model for an output. */
export async function attachmentsOf(target: ITarget, rows: number, form: string): Promise<IAttachment[]> {
  const output = outputOf(target);
  const count = target.cell.model.executionCount;
  const name = count === null ? 'output' : `output:${count}`;
  switch (kindOf(output)) {
    case 'picture':
      return [await pictureAttachment(name, output, target)];
    case 'audio':
      return [await clipAttachment(name, output)];
    case 'table':
      return tableAttachments(name, output, target, rows, form);
    default:
      return [textAttachment(name, plainText(output))];
  }
}

async function pictureAttachment(name: string, output: IOutputModel, target: ITarget): Promise<IAttachment> {
  const mime = PICTURES.find(key => key in output.data);
  if (mime) {
    return imageAttachment(name, mime, textOf(output.data[mime]));
  }
  if ('image/svg+xml' in output.data) {
    return svgAttachment(name, textOf(output.data['image/svg+xml']));
  }
  const drawn = await pictureOf(target.cell.outputArea.widgets[target.index].node);
  if (!drawn) {
    throw new Error('This output shows no picture.');
  }
  const { width, height, ...picture } = drawn;
  return { id: UUID.uuid4(), kind: 'image', name, note: `${width} × ${height}`, ...picture };
}

async function clipAttachment(name: string, output: IOutputModel): Promise<IAttachment> {
  const mime = Object.keys(output.data).find(key => key.startsWith('audio/'));
  if (mime) {
    return audioAttachment(name, mime, textOf(output.data[mime]));
  }
  const page = new DOMParser().parseFromString(textOf(output.data['text/html']), 'text/html'); // inert: nothing loads
  const source = page.querySelector('audio[src], audio source[src]')?.getAttribute('src') ?? '';
  const found = await uriAttachment(name, source);
  if (!found) {
    throw new Error('The sound is not part of the notebook: show it with Audio(…, embed=True).');
  }
  return found;
}

/** The value itself if the kernel still has it, else the text that is shown. */
async function tableAttachments(
  name: string,
  output: IOutputModel,
  { panel, cell }: ITarget,
  rows: number,
  form: string
): Promise<IAttachment[]> {
  const kernel = panel.sessionContext.session?.kernel;
  const plain = textAttachment(name, plainText(output), 'table');
  if (!kernel || output.type !== 'execute_result' || cell.model.executionCount === null) {
    return [plain];
  }
  const parts = await partsOf(kernel, `Out[${cell.model.executionCount}]`, rows, form).catch(() => []);
  return parts.length ? parts.map(part => ({ id: UUID.uuid4(), name, ...part })) : [plain];
}

/** The text of an output, without the colours of a terminal. */
export function plainText(output: IOutputModel): string {
  const json = output.toJSON();
  const error = json.traceback as string[] | undefined;
  const text = error ? error.join('\n') : textOf(json.text) || textOf(output.data['text/plain']);
  // eslint-disable-next-line no-control-regex
  return text.replace(/\u001b\[[0-9;]*m/g, '');
}

// -- answers -----------------------------------------------------------------------------------------------------

/** The output that is saved for an answer; other programs show its Markdown, which must load nothing there either. */
export function answerOutput(answer: ISavedAnswer): IDisplayData {
  const facts = [answer.model, answer.notice].filter(Boolean).join(' · ');
  const text = harmless(answer.text);
  const markdown = facts ? `${text}\n\n*${facts}*` : text;
  return {
    output_type: 'display_data',
    data: { [ANSWER_MIME]: { ...answer }, 'text/markdown': markdown, 'text/plain': answer.text },
    metadata: {}
  } as unknown as IDisplayData;
}

export function savedAnswer(output: IOutputModel): ISavedAnswer | null {
  return (output.data[ANSWER_MIME] as unknown as ISavedAnswer | undefined) ?? null;
}

/** Where the answer of that id stands in the cell's outputs; -1 once it is gone. */
export function findAnswer(cell: CodeCell, id: string): number {
  const { model } = cell.outputArea;
  return [...Array(model.length).keys()].find(index => savedAnswer(model.get(index))?.id === id) ?? -1;
}

/** Put an output after the one at `index` and the answers that stand under it already. */
export function insertAfter(cell: CodeCell, index: number, output: IOutput): void {
  const { model } = cell.outputArea;
  let at = index + 1;
  while (at < model.length && savedAnswer(model.get(at))) {
    at++;
  }
  model.add(output);
  // The model can only append and replace: move the later outputs down by one, from the end.
  for (let to = model.length - 1; to > at; to--) {
    model.set(to, model.get(to - 1).toJSON());
  }
  if (at < model.length - 1) {
    model.set(at, output);
  }
}

/** Show the answer as it is now; false once it was removed. */
export function updateAnswer(cell: CodeCell, answer: ISavedAnswer): boolean {
  const index = cell.isDisposed ? -1 : findAnswer(cell, answer.id);
  if (index >= 0) {
    cell.outputArea.model.set(index, answerOutput(answer));
  }
  return index >= 0;
}
