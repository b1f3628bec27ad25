/** Sound as samples: WAV files and waveforms. Pure. */

/** A mono 16-bit WAV file of `samples` in -1..1 (http://soundfile.sapp.org/doc/WaveFormat). */
export function encodeWav(samples: Float32Array, rate: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at: number, word: string) => [...word].forEach((sign, i) => view.setUint8(at + i, sign.charCodeAt(0)));
  text(0, 'RIFF');
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, 'data');
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) =>
    view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true)
  );
  return new Uint8Array(view.buffer);
}

/** The loudest sample of each of `bars` equal stretches, 0..1 of the loudest of all. */
export function peaksOf(samples: Float32Array, bars: number): number[] {
  const peaks = Array.from({ length: bars }, (_, bar) => {
    const stretch = samples.subarray((bar * samples.length) / bars, ((bar + 1) * samples.length) / bars);
    return stretch.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  });
  const most = Math.max(...peaks, 1e-6);
  return peaks.map(peak => peak / most);
}

/** Bytes in base64, in pieces that fit an argument list. */
export function toBase64(bytes: Uint8Array): string {
  let text = '';
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text.replace(/\s/g, '')), sign => sign.charCodeAt(0));
}
