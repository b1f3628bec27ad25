/** The wire form, read from the same files as the Python side reads: tests/wire/*.jsonl. */
import { describe, expect, it } from 'vitest';
import { GemmaError } from '../src/errors';
import { AnswerDecoder, LineSplitter } from '../src/sse';
import type { IChunk } from '../src/tokens';

const FILES = import.meta.glob<string>('../../tests/wire/*.jsonl', { query: '?raw', import: 'default', eager: true });

interface IEntry {
  event?: string;
  chunk?: IChunk & { usage?: Record<string, unknown> };
  error?: { code: string; message: string; fix: string };
}

/** `read` with the fields that the file names. */
function like(read: unknown, wanted: unknown): unknown {
  if (typeof wanted !== 'object' || wanted === null || typeof read !== 'object' || read === null) {
    return read;
  }
  return Object.fromEntries(Object.entries(wanted).map(([key, value]) => [key, like((read as never)[key], value)]));
}

function decode(lines: string[]): { chunks: IChunk[]; error?: GemmaError } {
  const decoder = new AnswerDecoder();
  const chunks: IChunk[] = [];
  try {
    lines.forEach(line => chunks.push(...decoder.feed(line)));
    chunks.push(...decoder.end());
  } catch (error) {
    return { chunks, error: error as GemmaError };
  }
  return { chunks };
}

it('finds the files', () => {
  expect(Object.keys(FILES).length).toBeGreaterThan(5);
});

describe.each(Object.entries(FILES))('%s', (_, text) => {
  const entries = text
    .split('\n')
    .filter(Boolean)
    .map(line => JSON.parse(line) as IEntry);
  const lines = entries.flatMap(entry => (entry.event === undefined ? [] : [entry.event]));
  const wanted = entries.flatMap(entry => (entry.chunk ? known(entry.chunk) : []));
  const failure = entries.find(entry => entry.error)?.error;

  it('gives the chunks that stand in it', () => {
    const { chunks, error } = decode(lines);
    expect(chunks.map((chunk, index) => like(chunk, wanted[index]))).toEqual(wanted.map(chunk => like(chunk, chunk)));
    expect(chunks.length).toBe(wanted.length);
    expect(error && { code: error.code, message: error.message, fix: error.fix }).toEqual(failure);
  });

  it('gives them however the bytes are cut', () => {
    const whole = lines.join('\n') + '\n';
    const splitter = new LineSplitter();
    expect([...whole].flatMap(sign => splitter.feed(sign))).toEqual(lines);
  });
});

/** What the panel reads of a chunk: it asks for no token chances. */
function known(chunk: IChunk): IChunk[] {
  const fields = ['text', 'thinking', 'tool_call', 'progress', 'finish', 'usage'];
  const read = Object.entries(chunk).filter(([key]) => fields.includes(key));
  return read.length ? [Object.fromEntries(read)] : [];
}

describe('AnswerDecoder', () => {
  it('refuses what is no JSON', () => {
    expect(() => new AnswerDecoder().feed('data: {"choices"')).toThrow(GemmaError);
  });

  it('skips what it does not know', () => {
    const decoder = new AnswerDecoder();
    expect(
      ['', 'event: x', ': hello', 'data: [DONE]', 'data: {"choices": []}'].flatMap(line => decoder.feed(line))
    ).toEqual([]);
    expect(decoder.finished).toBe(false);
  });
});

describe('LineSplitter', () => {
  it('ends lines at line feeds only', () => {
    const splitter = new LineSplitter();
    expect(splitter.feed('a\u2028b\r\nc')).toEqual(['a\u2028b']);
    expect(splitter.feed('\n')).toEqual(['c']);
  });
});
