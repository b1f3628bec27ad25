/** What is dragged or pasted into the panel, as attachments. */
import type { ICell } from '@jupyterlab/nbformat';
import type { Contents } from '@jupyterlab/services';
import type { MimeData } from '@lumino/coreutils';
import { cellText, cut, fileAttachment, mimeOf, textAttachment, uriAttachment } from './attach';
import type { IAttachment } from './tokens';
import { fromBase64 } from './wav';

const CELLS = 'application/vnd.jupyter.cells';
const PATHS = 'application/x-jupyter-icontents';
export const LAB_TYPES = [CELLS, PATHS];

/** Files, pictures of the page, and text, as the browser drags them. */
export async function fromTransfer(transfer: DataTransfer): Promise<IAttachment[]> {
  const files = [...transfer.files];
  const [html, uri, text] = ['text/html', 'text/uri-list', 'text/plain'].map(type => transfer.getData(type));
  if (files.length) {
    return fromFiles(files);
  }
  const source = new DOMParser().parseFromString(html, 'text/html').querySelector('img')?.getAttribute('src') ?? uri;
  const picture = await uriAttachment('picture', source);
  if (picture) {
    return [picture];
  }
  return text ? [textAttachment('text', text)] : [];
}

export function fromFiles(files: File[]): Promise<IAttachment[]> {
  return Promise.all(
    files.map(async file => fileAttachment(file.name, new Uint8Array(await file.arrayBuffer()), file.type))
  );
}

/** Cells of a notebook, or files of the file browser, as JupyterLab drags them. */
export async function fromLab(data: MimeData, contents: Contents.IManager): Promise<IAttachment[]> {
  if (data.hasData(CELLS)) {
    const cells = data.getData(CELLS) as ICell[];
    return (await Promise.all(cells.map((cell, index) => cellAttachments(cell, index + 1)))).flat();
  }
  if (data.hasData(PATHS)) {
    return Promise.all((data.getData(PATHS) as string[]).map(path => fromPath(path, contents)));
  }
  return [];
}

/** A dragged cell: its source and text, and the pictures of its outputs. */
async function cellAttachments(cell: ICell, number: number): Promise<IAttachment[]> {
  const outputs = (cell.outputs ?? []) as { data?: Record<string, unknown>; text?: string | string[] }[];
  const text = outputs.map(({ text, data }) => joined(text ?? data?.['text/plain'])).join('\n');
  const source = cellText({ cell_type: cell.cell_type, source: cell.source as string | string[] }, number);
  const name = typeof cell.execution_count === 'number' ? `cell:${cell.execution_count}` : 'cell';
  const pictures = outputs.map(({ data }) => joined(data?.['image/png'])).filter(Boolean);
  const drawn = await Promise.all(pictures.map(data => uriAttachment(name, `data:image/png;base64,${data}`)));
  return [textAttachment(name, text ? `${source}\noutput:\n${cut(text, 4000)}` : source), ...drawn.filter(isThere)];
}

function isThere<T>(value: T | null): value is T {
  return value !== null;
}

function joined(value: unknown): string {
  return Array.isArray(value) ? value.join('') : typeof value === 'string' ? value : '';
}

/** A file of Jupyter's contents. */
export async function fromPath(path: string, contents: Contents.IManager): Promise<IAttachment> {
  const binary = /^(image|audio)\//.test(mimeOf(path)) && !path.endsWith('.svg');
  const type = 'file'; // notebooks too: as they are saved
  const model = await contents.get(path, { type, format: binary ? 'base64' : 'text', content: true });
  const name = path.split('/').pop() ?? path;
  const bytes = binary ? fromBase64(model.content) : new TextEncoder().encode(model.content);
  return fileAttachment(name, bytes, model.mimetype);
}
