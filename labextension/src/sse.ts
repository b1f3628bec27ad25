/** A streamed answer, from text to chunks; the TypeScript twin of jupyter_gemma/wire/answer.py. Pure. */
import { errorOf, GemmaError } from './errors';
import type { FinishReason, IChunk, IToolCall, IUsage } from './tokens';

interface ICallPiece {
  index?: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

interface IDelta {
  content?: string | null;
  reasoning_content?: string | null;
  reasoning?: string | null;
  tool_calls?: ICallPiece[];
}

interface IEvent {
  error?: unknown;
  choices?: { delta?: IDelta; finish_reason?: string | null }[];
  usage?: Record<string, unknown> | null;
  timings?: Record<string, number>;
}

const REASONS = ['stop', 'length', 'tool_calls', 'cancelled'];

/** Cuts text that comes in pieces into lines. Only a line feed ends a line: U+2028 may stand inside a text. */
export class LineSplitter {
  feed(piece: string): string[] {
    const lines = (this._rest + piece).split('\n');
    this._rest = lines.pop() ?? '';
    return lines.map(line => (line.endsWith('\r') ? line.slice(0, -1) : line));
  }

  private _rest = '';
}

/** Reads one streamed answer line by line. The chunk with the finish is held back for the usage; `end` gives it. */
export class AnswerDecoder {
  finished = false;

  feed(line: string): IChunk[] {
    if (line.startsWith(':')) {
      return progressOf(line.slice(1));
    }
    const text = line.startsWith('data:') ? line.slice(5).trim() : '';
    if (!text || text === '[DONE]') {
      return [];
    }
    return this._event(parse(text));
  }

  end(): IChunk[] {
    const last: IChunk = { finish: this._finish };
    if (this._usage) {
      last.usage = this._usage;
    }
    return [...this._flush(), last];
  }

  private _event(event: IEvent): IChunk[] {
    if (event.error) {
      throw errorOf(event);
    }
    if (event.usage) {
      this._usage = usageOf(event);
    }
    const choice = event.choices?.[0];
    if (choice?.finish_reason) {
      this.finished = true;
      this._finish = (REASONS.includes(choice.finish_reason) ? choice.finish_reason : 'stop') as FinishReason;
    }
    return choice?.delta ? this._delta(choice.delta) : [];
  }

  private _delta(delta: IDelta): IChunk[] {
    const chunk: IChunk = {};
    if (delta.content) {
      chunk.text = delta.content;
    }
    const thinking = delta.reasoning_content || delta.reasoning;
    if (thinking) {
      chunk.thinking = thinking;
    }
    const chunks = chunk.text || chunk.thinking ? [chunk] : [];
    return [...chunks, ...(delta.tool_calls ?? []).flatMap(piece => this._toolCall(piece))];
  }

  /** Collect the pieces of a call; a piece of the next one completes it. */
  private _toolCall(piece: ICallPiece): IChunk[] {
    const text = piece.function?.arguments ?? '';
    if (this._call && this._call.index === piece.index) {
      this._call.text += text;
      return [];
    }
    const done = this._flush();
    this._call = { index: piece.index, id: piece.id ?? '', name: piece.function?.name ?? '', text };
    return done;
  }

  private _flush(): IChunk[] {
    const call = this._call;
    this._call = undefined;
    if (!call) {
      return [];
    }
    const tool_call: IToolCall = { name: call.name, arguments: parse(call.text || '{}'), id: call.id };
    return [{ tool_call }];
  }

  private _finish: FinishReason = 'stop';
  private _usage?: IUsage;
  private _call?: { index?: number; id: string; name: string; text: string };
}

function parse<T>(text: string): T {
  try {
    return JSON.parse(text) as T;
  } catch {
    throw new GemmaError(`The server sent something that cannot be read: ${text.slice(0, 80)}`);
  }
}

function progressOf(comment: string): IChunk[] {
  try {
    const { progress } = JSON.parse(comment);
    return progress ? [{ progress }] : [];
  } catch {
    return []; // a comment of somebody else
  }
}

/** What a server does not break down counts as text. */
function usageOf(event: IEvent): IUsage {
  const usage = (event.usage ?? {}) as Record<string, number>;
  const details = ((event.usage ?? {}).prompt_tokens_details ?? {}) as Record<string, number | null>;
  const image_tokens = details.image_tokens ?? 0;
  const audio_tokens = details.audio_tokens ?? 0;
  return {
    text_tokens: (usage.prompt_tokens ?? 0) - image_tokens - audio_tokens,
    image_tokens,
    audio_tokens,
    cached_tokens: details.cached_tokens ?? 0,
    completion_tokens: usage.completion_tokens ?? 0,
    prefill_seconds: event.timings?.prefill_seconds ?? 0,
    decode_seconds: event.timings?.decode_seconds ?? 0
  };
}
