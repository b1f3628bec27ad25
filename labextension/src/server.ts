/** What the model server does, asked now and then while the page is in view, more often while something happens. */
import { Signal, type ISignal } from '@lumino/signaling';
import { explain } from './errors';
import type { IApi, ICard, IServer, IServerStatus } from './tokens';
import { VERSION } from './version';

const IDLE_MS = 5000;
const BUSY_MS = 700;
const WATCH_MS = 3000;

export class Server implements IServer {
  constructor(private readonly _api: IApi) {}

  status: IServerStatus = { state: 'unknown', model: '' };
  command = '';
  mismatch = '';
  models: ICard[] = [];
  chosen = '';

  get changed(): ISignal<IServer, void> {
    return this._changed;
  }

  choose(model: string): void {
    this.chosen = model;
    this._changed.emit();
  }

  async card(): Promise<ICard> {
    const { models, model } = await this._api.models();
    this.models = models;
    const name = this.chosen || this._resident() || model;
    return models.find(card => card.name === name) ?? models.find(card => card.name === model) ?? blankCard(name);
  }

  get resident(): ICard | null {
    const name = this.chosen || this._resident();
    return this.models.find(card => card.name === name) ?? null;
  }

  /** Look now; also finds out whether the server extension is of our version. */
  async refresh(): Promise<void> {
    try {
      const { version, command, server } = await this._api.status();
      this.command = command;
      this.mismatch = version === VERSION ? '' : version;
      this.status = server;
      if (this._resident() && !this.models.length) {
        await this.card();
      }
    } catch (error) {
      this.status = { state: 'missing', model: '', error: explain(error) };
    }
    this._changed.emit();
  }

  watch(): void {
    this._watchUntil = Date.now() + WATCH_MS;
    this._schedule(BUSY_MS);
  }

  /** Begin to look; returns what ends it. */
  start(): () => void {
    void this.refresh().then(() => this._schedule(IDLE_MS));
    return () => window.clearTimeout(this._timer);
  }

  async load(model: string): Promise<void> {
    this.watch();
    const told = { state: 'loading' as const, model };
    try {
      await this._api.load(model, progress => {
        this.status = { ...told, progress };
        this._changed.emit();
      });
    } finally {
      await this.refresh();
    }
  }

  /** A model that is in memory is asked rather than replaced. */
  private _resident(): string {
    return ['ready', 'busy', 'loading'].includes(this.status.state) ? this.status.model : '';
  }

  private _schedule(delay: number): void {
    window.clearTimeout(this._timer);
    this._timer = window.setTimeout(() => void this._tick(), delay);
  }

  private async _tick(): Promise<void> {
    if (!document.hidden) {
      await this.refresh();
    }
    const busy = this.status.state === 'loading' || this.status.state === 'busy' || Date.now() < this._watchUntil;
    this._schedule(busy ? BUSY_MS : IDLE_MS);
  }

  private _timer = 0;
  private _watchUntil = 0;
  private _changed = new Signal<IServer, void>(this);
}

function blankCard(name: string): ICard {
  const modalities: ICard['modalities'] = ['text', 'image', 'audio'];
  const words = { title: '', notice: '', prompts: {}, table_form: 'digest' as const };
  return { name, modalities, instruct: true, turns: true, extras: true, ...words };
}
