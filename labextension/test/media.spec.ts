import { describe, expect, it } from 'vitest';
import { cut, mimeOf, notebookText, uriAttachment } from '../src/attach';
import { progressWords, speedOf, tokensOf } from '../src/answer';
import { fit, svgSize } from '../src/rasterise';
import { encodeWav, fromBase64, peaksOf, toBase64 } from '../src/wav';

describe('rasteriser', () => {
  it.each([
    [640, 480, 640, 480],
    [3200, 1600, 1600, 800],
    [10, 4000, 4, 1600],
    [0, 0, 1, 1]
  ])('%d x %d fits', (width, height, wide, high) => {
    expect(fit(width, height)).toEqual({ width: wide, height: high });
  });

  it.each([
    ['<svg width="300" height="200px"/>', [300, 200]],
    ['<svg width="72pt" height="36pt"/>', [96, 48]],
    ['<svg viewBox="0 0 50 40"/>', [50, 40]],
    ['<svg width="100%" viewBox="0,0,50,40"/>', [50, 40]],
    ['<svg/>', [800, 600]]
  ])('%s', (source, size) => {
    const root = new DOMParser().parseFromString(source, 'image/svg+xml').documentElement;
    expect(svgSize(root)).toEqual(size);
  });
});

describe('sound', () => {
  it('becomes a 16-bit mono WAV file', () => {
    const wav = encodeWav(Float32Array.of(0, 1, -1, 2), 16000);
    const view = new DataView(wav.buffer);
    expect(new TextDecoder().decode(wav.slice(0, 4))).toBe('RIFF');
    expect([view.getUint16(22, true), view.getUint32(24, true), view.getUint16(34, true)]).toEqual([1, 16000, 16]);
    expect([44, 46, 48, 50].map(at => view.getInt16(at, true))).toEqual([0, 32767, -32767, 32767]);
    expect(view.getUint32(4, true)).toBe(wav.length - 8);
  });

  it('has a shape', () => {
    expect(peaksOf(Float32Array.of(0, 0.1, -0.5, 0.2), 2).map(peak => Number(peak.toFixed(3)))).toEqual([0.2, 1]);
    expect(peaksOf(new Float32Array(0), 3)).toEqual([0, 0, 0]);
  });

  it('survives base64', () => {
    const bytes = Uint8Array.from({ length: 70_000 }, (_, i) => i % 256);
    expect(fromBase64(toBase64(bytes))).toEqual(bytes);
  });
});

describe('attachments', () => {
  it('are told apart by their names', () => {
    expect(['a.PNG', 'b.jpeg', 'c.wav', 'd.csv', 'e.py', 'f'].map(mimeOf)).toEqual([
      'image/png',
      'image/jpeg',
      'audio/wav',
      'text/csv',
      '',
      ''
    ]);
  });

  it('are bounded', () => {
    expect(cut('abc', 5)).toBe('abc');
    expect(cut('abcdef', 4)).toBe('abcd\n… 2 more characters');
  });

  it('are never fetched', async () => {
    expect(await uriAttachment('x', 'https://example.org/a.png')).toBeNull();
    expect(await uriAttachment('x', 'data:audio/wav;base64,UklGRg==')).toMatchObject({
      kind: 'audio',
      mime: 'audio/wav'
    });
  });

  it('of a notebook are its cells', () => {
    const cells = [
      { cell_type: 'code', source: ['a = 1\n', 'b'] },
      { cell_type: 'markdown', source: '# T' }
    ];
    expect(notebookText({ cells })).toBe('[1] code\na = 1\nb\n\n[2] markdown\n# T');
  });
});

describe('what stands under an answer', () => {
  const usage = {
    text_tokens: 15,
    image_tokens: 48,
    audio_tokens: 0,
    cached_tokens: 0,
    completion_tokens: 20,
    prefill_seconds: 1,
    decode_seconds: 0.5
  };

  it('is counted', () => {
    expect(tokensOf(usage)).toBe('15 text + 48 image');
    expect(tokensOf(undefined)).toBe('');
    expect(speedOf(usage)).toBe(40);
    expect(speedOf({ ...usage, decode_seconds: 0 })).toBe(0);
    expect(progressWords({ phase: 'loading', done: 2, total: 5 })).toBe('loading 40%');
    expect(progressWords({ phase: 'waiting', done: 0, total: 0 })).toBe('waiting');
  });
});
