/** One answer while it comes, and what is said under it. Pure. */
import type { IAnswer, IChunk, IProgress, IUsage } from './tokens';

export function newAnswer(): IAnswer {
  return { text: '', thinking: '', model: '', notice: '' };
}

/** Take `chunks` into `answer`; yields once a chunk, with the progress that it tells or null. */
export async function* collect(chunks: AsyncIterable<IChunk>, answer: IAnswer): AsyncGenerator<IProgress | null> {
  for await (const chunk of chunks) {
    answer.text += chunk.text ?? '';
    answer.thinking += chunk.thinking ?? '';
    answer.finish = chunk.finish ?? answer.finish;
    answer.usage = chunk.usage ?? answer.usage;
    if (chunk.tool_call) {
      answer.text += `\n\n\`${chunk.tool_call.name}(${JSON.stringify(chunk.tool_call.arguments)})\`\n\n`;
    }
    yield chunk.progress ?? null;
  }
}

/** Tokens a second, or 0 where that says nothing. */
export function speedOf(usage: IUsage | undefined): number {
  return usage && usage.completion_tokens > 1 && usage.decode_seconds > 0
    ? usage.completion_tokens / usage.decode_seconds
    : 0;
}

type ITokens = Pick<IUsage, 'text_tokens' | 'image_tokens' | 'audio_tokens'>;

/** "15 text + 48 image"; "" where nothing was counted. */
export function tokensOf(usage: ITokens | undefined): string {
  const counts: [number | undefined, string][] = [
    [usage?.text_tokens, 'text'],
    [usage?.image_tokens, 'image'],
    [usage?.audio_tokens, 'audio']
  ];
  return counts
    .filter(([count]) => count)
    .map(([count, kind]) => `${count} ${kind}`)
    .join(' + ');
}

/** "loading demo 40%"; without a total only the phase. */
export function progressWords(progress: IProgress): string {
  const share = progress.total > 0 ? ` ${Math.floor((100 * progress.done) / progress.total)}%` : '';
  return progress.phase + share;
}
