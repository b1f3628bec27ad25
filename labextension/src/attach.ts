/** Files and bytes as attachments. */
import { UUID } from '@lumino/coreutils';
import { GemmaError } from './errors';
import { pictureOfFile, pictureOfSvg } from './rasterise';
import type { IAttachment } from './tokens';
import { fromBase64, toBase64 } from './wav';

export const TEXT_LIMIT = 20_000;
const FILE_LIMIT = 32 * 2 ** 20;

const MIME: Record<string, string> = {
  png: 'image/png',
  jpg: 'image/jpeg',
  jpeg: 'image/jpeg',
  gif: 'image/gif',
  webp: 'image/webp',
  bmp: 'image/bmp',
  svg: 'image/svg+xml',
  wav: 'audio/wav',
  flac: 'audio/flac',
  ogg: 'audio/ogg',
  mp3: 'audio/mpeg',
  m4a: 'audio/mp4',
  csv: 'text/csv',
  tsv: 'text/tab-separated-values'
};

/** Media type by the end of a name; "" for anything that is read as text. */
export function mimeOf(name: string): string {
  return MIME[name.split('.').pop()?.toLowerCase() ?? ''] ?? '';
}

export function textAttachment(name: string, text: string, kind: 'text' | 'table' = 'text', note = ''): IAttachment {
  const lines = text.trimEnd().split('\n').length;
  return { id: UUID.uuid4(), kind, name, note: note || `${lines} lines`, text: cut(text) };
}

/** The beginning of `text`, and a line that says how much is missing. */
export function cut(text: string, limit = TEXT_LIMIT): string {
  return text.length <= limit ? text : `${text.slice(0, limit)}\n… ${text.length - limit} more characters`;
}

export async function imageAttachment(name: string, mime: string, data: string): Promise<IAttachment> {
  const { width, height, ...picture } = await pictureOfFile(mime, data.replace(/\s/g, ''));
  return { id: UUID.uuid4(), kind: 'image', name, note: `${width} × ${height}`, ...picture };
}

export async function svgAttachment(name: string, source: string): Promise<IAttachment> {
  const { width, height, ...picture } = await pictureOfSvg(source);
  return { id: UUID.uuid4(), kind: 'image', name, note: `${width} × ${height}`, ...picture };
}

export function audioAttachment(name: string, mime: string, data: string): IAttachment {
  const bytes = Math.round((3 * data.length) / 4);
  return { id: UUID.uuid4(), kind: 'audio', name, note: `${Math.ceil(bytes / 1024)} kB`, mime, data };
}

/** A file by its name and bytes: picture, clip, table or text. */
export async function fileAttachment(name: string, bytes: Uint8Array<ArrayBuffer>, type = ''): Promise<IAttachment> {
  if (bytes.length > FILE_LIMIT) {
    throw new GemmaError(`${name} has ${Math.round(bytes.length / 2 ** 20)} MB.`, 'Attach files of up to 32 MB.');
  }
  const mime = mimeOf(name) || type;
  if (mime === 'image/svg+xml') {
    return svgAttachment(name, new TextDecoder().decode(bytes));
  }
  if (mime.startsWith('image/')) {
    return imageAttachment(name, mime, toBase64(bytes));
  }
  if (mime.startsWith('audio/')) {
    return audioAttachment(name, mime, toBase64(bytes));
  }
  return textFile(name, mime, bytes);
}

function textFile(name: string, mime: string, bytes: Uint8Array): IAttachment {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new GemmaError(`${name} is neither a picture, nor a clip, nor text.`, 'Attach another kind of file.');
  }
  if (name.endsWith('.ipynb')) {
    return textAttachment(name, notebookText(JSON.parse(text)));
  }
  return textAttachment(name, text, /^text\/(csv|tab)/.test(mime) ? 'table' : 'text');
}

/** A `data:` address as an attachment; null for any other address: nothing is fetched. */
export async function uriAttachment(name: string, uri: string): Promise<IAttachment | null> {
  const match = /^data:([\w/+.-]+)(?:;[\w=-]+)*;base64,([\s\S]+)$/.exec(uri.trim());
  const end = match?.[1].split('/')[1].replace('+xml', '') ?? '';
  return match ? fileAttachment(`${name}.${end}`, fromBase64(match[2]), match[1]) : null;
}

interface ISavedCell {
  cell_type: string;
  source: string | string[];
}

/** The cells of a notebook file, one after the other. */
export function notebookText(notebook: { cells?: ISavedCell[] }): string {
  return (notebook.cells ?? []).map((cell, index) => cellText(cell, index + 1)).join('\n\n');
}

/** One cell as text: its number, kind and source. */
export function cellText(cell: ISavedCell, number: number): string {
  const source = Array.isArray(cell.source) ? cell.source.join('') : cell.source;
  return `[${number}] ${cell.cell_type}\n${source}`;
}
