/** An error of the server extension or the model server: what is wrong and the way out. */
export class GemmaError extends Error {
  constructor(
    message: string,
    readonly fix = '',
    readonly code = ''
  ) {
    super(message);
  }
}

/** The error that a JSON body `{"error": {...}}` stands for; anything else names the HTTP status. */
export function errorOf(body: unknown, status = 0): GemmaError {
  const error = (body as { error?: { message?: string; fix?: string; code?: string } } | null)?.error;
  if (error?.message) {
    return new GemmaError(error.message, error.fix ?? '', error.code ?? '');
  }
  const plain = (body as { message?: string } | null)?.message;
  return new GemmaError(plain ?? `The server answered with HTTP status ${status}.`);
}

/** Message and way out of anything thrown. */
export function explain(error: unknown): { message: string; fix: string } {
  if (error instanceof GemmaError) {
    return { message: error.message, fix: error.fix };
  }
  return { message: error instanceof Error ? error.message : String(error), fix: '' };
}
