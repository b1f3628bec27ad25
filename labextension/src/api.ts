/** The only HTTP of the front end: Jupyter's authenticated routes, never the model server itself. */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { errorOf, GemmaError } from './errors';
import { AnswerDecoder, LineSplitter } from './sse';
import type {
  IApi,
  ICard,
  IChunk,
  IConversation,
  IProgress,
  IQuestion,
  IRendered,
  IServerStatus,
  ISummary
} from './tokens';

export class Api implements IApi {
  constructor(private readonly _settings: ServerConnection.ISettings) {}

  /** The answer, chunk by chunk. Aborting the signal, or leaving the loop, stops the model. */
  async *chat(question: IQuestion, signal?: AbortSignal): AsyncGenerator<IChunk> {
    const decoder = new AnswerDecoder();
    for await (const line of this._lines('chat', question, signal)) {
      yield* decoder.feed(line);
    }
    if (!decoder.finished) {
      throw new GemmaError('The connection broke before the answer was complete.', 'Ask again.', 'server_lost');
    }
    yield* decoder.end();
  }

  models(): Promise<{ models: ICard[]; model: string }> {
    return this._json('GET', 'models');
  }

  status(): Promise<{ version: string; command: string; server: IServerStatus }> {
    return this._json('GET', 'status');
  }

  async load(model: string, onProgress: (progress: IProgress) => void): Promise<void> {
    const decoder = new AnswerDecoder();
    for await (const line of this._lines('load', { model })) {
      for (const chunk of decoder.feed(line)) {
        if (chunk.progress) {
          onProgress(chunk.progress);
        }
      }
    }
  }

  async unload(): Promise<void> {
    await this._json('POST', 'unload', {});
  }

  async stopServer(): Promise<void> {
    await this._json('POST', 'stop', {});
  }

  render(question: IQuestion): Promise<IRendered> {
    return this._json('POST', 'render', question);
  }

  remote(): Promise<{ base_url: string; has_key: boolean }> {
    return this._json('GET', 'remote');
  }

  async setRemote(base_url: string, api_key: string | null): Promise<void> {
    await this._json('PUT', 'remote', { base_url, api_key });
  }

  async conversations(search: string): Promise<ISummary[]> {
    const query = URLExt.objectToQueryString({ search });
    return (await this._json<{ conversations: ISummary[] }>('GET', `conversations${query}`)).conversations;
  }

  conversation(id: string): Promise<IConversation> {
    return this._json('GET', `conversations/${id}`);
  }

  saveConversation(conversation: IConversation): Promise<ISummary> {
    return this._json('PUT', `conversations/${conversation.id}`, conversation);
  }

  async deleteConversation(id: string): Promise<void> {
    await this._json('DELETE', `conversations/${id}`);
  }

  private async _json<T>(method: string, route: string, body?: unknown): Promise<T> {
    return (await (await this._send(method, route, body)).json()) as T;
  }

  private async _send(method: string, route: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
    const url = URLExt.join(this._settings.baseUrl, 'jupyter-gemma') + '/' + route;
    const init: RequestInit = { method, signal, body: body === undefined ? null : JSON.stringify(body) };
    const response = await ServerConnection.makeRequest(url, init, this._settings);
    if (!response.ok) {
      throw errorOf(await response.json().catch(() => null), response.status);
    }
    return response;
  }

  private async *_lines(route: string, body: unknown, signal?: AbortSignal): AsyncGenerator<string> {
    const response = await this._send('POST', route, body, signal);
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    const [decoder, splitter] = [new TextDecoder(), new LineSplitter()];
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) {
          return;
        }
        yield* splitter.feed(decoder.decode(value, { stream: true }));
      }
    } finally {
      void reader.cancel().catch(() => undefined);
    }
  }
}
