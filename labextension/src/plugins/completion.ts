import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import {
  ICompletionProviderManager,
  type CompletionHandler,
  type IInlineCompletionList,
  type IInlineCompletionProvider
} from '@jupyterlab/completer';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { collect, newAnswer } from '../answer';
import { gemmaIcon } from '../icons';
import { firstCode } from '../markdown';
import { singleQuestion } from '../question';
import { IGemma, type IGemma as Gemma } from '../tokens';

const BEFORE = 4000;
const AFTER = 1000;
const MAX_TOKENS = 64;
const PAUSE_MS = 350;

/** Ghost text while typing, if the setting is on. */
export const completionPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:completion',
  description: 'Continues code while it is typed; off by default.',
  autoStart: true,
  requires: [IGemma],
  optional: [ICompletionProviderManager, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    gemma: Gemma,
    manager: ICompletionProviderManager | null,
    translator: ITranslator | null
  ): void => {
    const trans = (translator ?? nullTranslator).load('jupyter_gemma');
    // JupyterLab reads the list of providers once, when it starts; the setting is looked at with each question.
    manager?.registerInlineProvider(new Provider(gemma, trans.__('Gemma')));
  }
};

class Provider implements IInlineCompletionProvider {
  constructor(
    private readonly _gemma: Gemma,
    readonly name: string
  ) {}

  readonly identifier = 'jupyter-gemma:completion';
  readonly icon = gemmaIcon;

  async fetch(request: CompletionHandler.IRequest): Promise<IInlineCompletionList> {
    if (!this._gemma.settings.inlineCompletion) {
      return { items: [] };
    }
    const abort = this._begin();
    await new Promise(resolve => setTimeout(resolve, PAUSE_MS));
    if (abort.signal.aborted) {
      return { items: [] };
    }
    const insertText = await this._ask(request, abort.signal).catch(() => '');
    return { items: insertText ? [{ insertText }] : [] };
  }

  /** Only the newest question counts. */
  private _begin(): AbortController {
    this._running?.abort();
    return (this._running = new AbortController());
  }

  private async _ask({ text, offset }: CompletionHandler.IRequest, signal: AbortSignal): Promise<string> {
    const { api, server, settings } = this._gemma;
    const before = text.slice(Math.max(0, offset - BEFORE), offset);
    const after = text.slice(offset, offset + AFTER);
    const words =
      'Continue the code at <cursor>. Answer with what stands at the cursor only, in one code block.\n\n' +
      `${before}<cursor>${after}`;
    const card = await server.card();
    const question = card.instruct ? words : before;
    const answer = newAnswer();
    const body = { ...singleQuestion(question, [], card, settings), max_tokens: MAX_TOKENS };
    for await (const progress of collect(api.chat(body, signal), answer)) {
      void progress;
    }
    return card.instruct ? firstCode(answer.text) : answer.text;
  }

  private _running?: AbortController;
}
