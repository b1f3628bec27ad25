/** The microphone: one clip, 16 kHz mono, as a WAV file. */
import { encodeWav } from './wav';

export const RATE = 16000;

/** Records from `start` to `stop`. */
export class Recorder {
  /** Begin; rejects if the user does not let us. */
  async start(): Promise<void> {
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this._stream = await navigator.mediaDevices.getUserMedia({ audio });
    this._recorder = new MediaRecorder(this._stream, { audioBitsPerSecond: 128_000 });
    this._recorder.ondataavailable = event => this._pieces.push(event.data);
    this._recorder.start();
  }

  /** End; the clip as a WAV file. */
  async stop(): Promise<Uint8Array> {
    const recorder = this._recorder;
    if (!recorder) {
      throw new Error('Nothing was recorded.');
    }
    const stopped = new Promise(resolve => (recorder.onstop = resolve));
    recorder.stop();
    await stopped;
    this._stream?.getTracks().forEach(track => track.stop());
    return encodeWav(await decode(await new Blob(this._pieces).arrayBuffer()), RATE);
  }

  private _stream?: MediaStream;
  private _recorder?: MediaRecorder;
  private _pieces: Blob[] = [];
}

/** The samples of a sound file of any kind that the browser plays, 16 kHz mono. */
export async function decode(file: ArrayBuffer): Promise<Float32Array> {
  const context = new OfflineAudioContext(1, 1, RATE); // decodes at its own rate
  const sound = await context.decodeAudioData(file);
  const mono = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((sample, i) => (mono[i] += sample / sound.numberOfChannels));
  }
  return mono;
}
