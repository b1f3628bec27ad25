import * as React from 'react';
import { audioAttachment } from '../attach';
import { explain } from '../errors';
import { microphoneIcon } from '../icons';
import { Recorder } from '../recorder';
import type { IAttachment } from '../tokens';
import { toBase64 } from '../wav';
import { usePanel } from './host';

interface IMicrophoneProps {
  onClip: (clip: IAttachment) => void;
  onWords: (words: string) => void;
  onProblem: (words: string) => void;
}

/** Records while it is held, by pointer or by Space; the words are dictated or the clip is attached. */
export function Microphone({ onClip, onWords, onProblem }: IMicrophoneProps): JSX.Element {
  const { gemma, transcribe, trans } = usePanel();
  const [state, setState] = React.useState<'idle' | 'recording' | 'listening'>('idle');
  const recorder = React.useRef<Promise<Recorder> | null>(null);

  const start = () => {
    if (state !== 'idle' || recorder.current) {
      return;
    }
    onProblem('');
    setState('recording');
    const made = new Recorder();
    recorder.current = made.start().then(() => made);
    recorder.current.catch(error => {
      recorder.current = null;
      setState('idle');
      onProblem(trans.__('The microphone cannot be used: %1', explain(error).message));
    });
  };
  const finish = async (running: Promise<Recorder>) => {
    const data = toBase64(await (await running).stop());
    const clip = audioAttachment(trans.__('voice.wav'), 'audio/wav', data);
    if (gemma.settings.microphone === 'attach') {
      onClip(clip);
      return;
    }
    setState('listening');
    onWords(await transcribe(clip));
  };
  const stop = () => {
    const running = recorder.current;
    recorder.current = null;
    if (running) {
      finish(running)
        .catch(error => onProblem(explain(error).message))
        .finally(() => setState('idle'));
    }
  };
  const isSpace = (event: React.KeyboardEvent) => event.key === ' ' && (event.preventDefault(), true);
  const label = { idle: trans.__('Hold to talk'), recording: trans.__('Recording…'), listening: trans.__('Writing…') };
  return (
    <button
      type="button"
      className="jg-IconButton jg-Microphone"
      data-state={state}
      title={label[state]}
      aria-label={label[state]}
      onPointerDown={start}
      onPointerUp={stop}
      onPointerLeave={stop}
      onKeyDown={event => isSpace(event) && !event.repeat && start()}
      onKeyUp={event => isSpace(event) && stop()}
    >
      <microphoneIcon.react tag="span" aria-hidden="true" />
    </button>
  );
}
