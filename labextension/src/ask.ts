/** Answers that are written under the output they speak of. */
import { UUID } from '@lumino/coreutils';
import { Signal, type ISignal } from '@lumino/signaling';
import { collect, newAnswer } from './answer';
import { explain } from './errors';
import { answerOutput, attachmentsOf, insertAfter, kindOf, outputOf, updateAnswer } from './outputs';
import type { ISavedAnswer, ITarget } from './outputs';
import { singleQuestion, wordsFor } from './question';
import type { IGemma, IProgress } from './tokens';

const UPDATE_MS = 120;

export type OutputAction = 'explain' | 'transcribe' | 'summarise' | 'error';

export class OutputAnswers {
  constructor(private readonly _gemma: IGemma) {}

  /** A running answer began or ended. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  isRunning(id: string): boolean {
    return this._running.has(id);
  }

  /** What happens before the first word: starting, loading, waiting. */
  progressOf(id: string): IProgress | null {
    return this._progress.get(id) ?? null;
  }

  stop(id: string): void {
    this._running.get(id)?.abort();
  }

  /** Ask, and stream the answer into the cell's outputs; resolves when it is complete. */
  async ask(target: ITarget, action: OutputAction): Promise<ISavedAnswer> {
    const { cell, index } = target;
    const about = kindOf(outputOf(target));
    const answer: ISavedAnswer = { ...newAnswer(), id: UUID.uuid4(), action, about };
    const abort = new AbortController();
    this._running.set(answer.id, abort);
    insertAfter(cell, index, answerOutput(answer));
    this._gemma.server.watch();
    try {
      await this._stream(target, answer, abort);
    } catch (error) {
      if (abort.signal.aborted) {
        answer.finish = 'cancelled';
      } else {
        answer.error = explain(error);
      }
    }
    this._running.delete(answer.id);
    this._progress.delete(answer.id);
    updateAnswer(cell, answer);
    this._changed.emit();
    void this._gemma.server.refresh();
    return answer;
  }

  private async _stream(target: ITarget, answer: ISavedAnswer, abort: AbortController): Promise<void> {
    const { api, server, settings } = this._gemma;
    const card = await server.card();
    Object.assign(answer, { model: card.title || card.name, notice: card.notice });
    const attachments = await attachmentsOf(target, settings.rows, card.table_form);
    const question = singleQuestion(wordsFor(answer.action, card), attachments, card, settings);
    let next = 0;
    for await (const progress of collect(api.chat(question, abort.signal), answer)) {
      if (progress) {
        this._progress.set(answer.id, progress);
        this._changed.emit();
      }
      if (Date.now() >= next) {
        next = Date.now() + UPDATE_MS;
        if (!updateAnswer(target.cell, answer)) {
          abort.abort(); // the output was removed, or the cell ran again
        }
      }
    }
  }

  private readonly _progress = new Map<string, IProgress>();
  private readonly _running = new Map<string, AbortController>();
  private readonly _changed = new Signal<this, void>(this);
}
