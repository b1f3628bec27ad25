/** The conversations of the panel and the one that goes on; knows no DOM and no JupyterLab widgets. */
import { Signal, type ISignal } from '@lumino/signaling';
import { explain, GemmaError } from './errors';
import { collect, newAnswer } from './answer';
import { mentionsIn, type Mention } from './mentions';
import { questionOf } from './question';
import type { IAttachment, IConversation, IExchange, IGemma, IProgress, IRendered, ISummary } from './tokens';

export interface IModelOptions {
  gemma: IGemma;
  /** Makes attachments of mentions. */
  resolve: (mention: Mention) => Promise<IAttachment[]>;
  newId: () => string;
  /** Called with the id of the conversation that is shown, to find it again after a reload. */
  remember: (id: string) => void;
}

export class ChatModel {
  constructor(private readonly _options: IModelOptions) {
    this.current = this._blank();
  }

  current: IConversation;
  saved: ISummary[] = [];
  busy = false;
  progress: IProgress | null = null;
  /** What failed outside of an answer: reading or saving conversations. */
  problem: { message: string; fix: string } | null = null;

  /** Something else than the text of the running answer changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The running answer grew. */
  get streamed(): ISignal<this, void> {
    return this._streamed;
  }

  // -- conversations --

  async refresh(search = ''): Promise<void> {
    await this._guard(async () => {
      this.saved = await this._options.gemma.api.conversations(search);
    });
  }

  create(): void {
    this.stop();
    this._show(this._blank());
  }

  async open(id: string): Promise<void> {
    if (id === this.current.id) {
      return;
    }
    this.stop();
    await this._guard(async () => this._show(await this._options.gemma.api.conversation(id)));
  }

  async rename(id: string, title: string): Promise<void> {
    await this._guard(async () => {
      const conversation = id === this.current.id ? this.current : await this._options.gemma.api.conversation(id);
      conversation.title = title.trim() || conversation.title;
      await this._save(conversation);
    });
  }

  async remove(id: string): Promise<void> {
    await this._guard(async () => {
      await this._options.gemma.api.deleteConversation(id);
      this.saved = this.saved.filter(summary => summary.id !== id);
      if (id === this.current.id) {
        this._show(this._blank());
      }
    });
  }

  dismiss(): void {
    this.problem = null;
    this._changed.emit();
  }

  // -- questions --

  /** Ask `text` about `attachments` and what it mentions. */
  async send(text: string, attachments: IAttachment[]): Promise<void> {
    if (this.busy || (!text.trim() && !attachments.length)) {
      return;
    }
    const exchange: IExchange = { id: this._options.newId(), text, attachments, answers: [], shown: 0 };
    this.current.exchanges.push(exchange);
    this.current.title ||= titleOf(text, attachments);
    await this._answer(exchange, async () => {
      exchange.attachments = [...attachments, ...(await this._mentioned(text))];
    });
  }

  /** Answer again; the earlier answers stay. */
  async regenerate(exchange: IExchange): Promise<void> {
    if (!this.busy) {
      this._cutAfter(exchange);
      await this._answer(exchange);
    }
  }

  /** Ask an earlier question in other words; what followed it is dropped. */
  async edit(exchange: IExchange, text: string): Promise<void> {
    if (this.busy || !text.trim()) {
      return;
    }
    this._cutAfter(exchange);
    const before = mentionsIn(exchange.text).map(mention => mention.text);
    const kept = exchange.attachments.filter(item => !before.includes(item.name));
    Object.assign(exchange, { text, answers: [], shown: 0 });
    await this._answer(exchange, async () => {
      exchange.attachments = [...kept, ...(await this._mentioned(text))];
    });
  }

  /** Show another of the answers. */
  show(exchange: IExchange, index: number): void {
    exchange.shown = Math.max(0, Math.min(index, exchange.answers.length - 1));
    this._changed.emit();
  }

  stop(): void {
    this._abort?.abort();
  }

  /** The exact prompt that an exchange is, or would be. */
  async prompt(exchange: IExchange): Promise<IRendered> {
    const { api, server, settings } = this._options.gemma;
    const until = this.current.exchanges.slice(0, this.current.exchanges.indexOf(exchange) + 1);
    return api.render(questionOf(until, await server.card(), settings));
  }

  private async _answer(exchange: IExchange, prepare?: () => Promise<void>): Promise<void> {
    const { gemma } = this._options;
    const abort = (this._abort = new AbortController());
    const conversation = this.current;
    const answer = newAnswer();
    exchange.shown = exchange.answers.push(answer) - 1;
    this.busy = true;
    this._changed.emit();
    gemma.server.watch();
    try {
      await prepare?.();
      const card = await gemma.server.card();
      Object.assign(answer, { model: card.title || card.name, notice: card.notice });
      const question = questionOf(conversation.exchanges, card, gemma.settings);
      for await (const progress of collect(gemma.api.chat(question, abort.signal), answer)) {
        this._tell(progress);
      }
    } catch (error) {
      if (abort.signal.aborted) {
        answer.finish = 'cancelled';
      } else {
        answer.error = explain(error);
      }
    }
    this.busy = false;
    this.progress = null;
    this._changed.emit();
    await this._guard(() => this._save(conversation));
    await gemma.server.refresh();
  }

  private _tell(progress: IProgress | null): void {
    if (progress || this.progress) {
      this.progress = progress;
      this._changed.emit();
    } else {
      this._streamed.emit();
    }
  }

  private async _mentioned(text: string): Promise<IAttachment[]> {
    const found = await Promise.all(mentionsIn(text).map(mention => this._options.resolve(mention)));
    return found.flat();
  }

  private _cutAfter(exchange: IExchange): void {
    const { exchanges } = this.current;
    exchanges.splice(exchanges.indexOf(exchange) + 1);
  }

  private _blank(): IConversation {
    return { id: this._options.newId(), title: '', updated: 0, revision: 0, exchanges: [] };
  }

  private _show(conversation: IConversation): void {
    this.current = conversation;
    this._options.remember(conversation.id);
    this._changed.emit();
  }

  /** Save; if another tab was faster, go on in a copy, so that nothing is lost. */
  private async _save(conversation: IConversation): Promise<void> {
    const { api } = this._options.gemma;
    let summary: ISummary;
    try {
      summary = await api.saveConversation(conversation);
    } catch (error) {
      if (!(error instanceof GemmaError) || error.code !== 'conversation_changed') {
        throw error;
      }
      Object.assign(conversation, { id: this._options.newId(), revision: 0 });
      summary = await api.saveConversation(conversation);
    }
    Object.assign(conversation, summary);
    this.saved = [summary, ...this.saved.filter(other => other.id !== summary.id)];
    if (conversation === this.current) {
      this._options.remember(conversation.id);
    }
  }

  private async _guard(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      this.problem = explain(error);
    }
    this._changed.emit();
  }

  private _abort?: AbortController;
  private _changed = new Signal<this, void>(this);
  private _streamed = new Signal<this, void>(this);
}

/** The first words of a question. */
export function titleOf(text: string, attachments: IAttachment[]): string {
  const words = text.replace(/\s+/g, ' ').trim() || attachments[0]?.name || '';
  return words.length > 48 ? `${words.slice(0, 47)}…` : words;
}
