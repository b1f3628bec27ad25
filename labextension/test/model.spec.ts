import { Signal } from '@lumino/signaling';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { GemmaError } from '../src/errors';
import { ChatModel, titleOf } from '../src/model';
import type { IApi, IChunk, IConversation, IGemma, IQuestion, ISummary } from '../src/tokens';

const CARD = {
  name: 'echo',
  title: 'Echo',
  notice: 'A test.',
  modalities: ['text' as const],
  instruct: true,
  turns: true,
  extras: true,
  prompts: {},
  table_form: 'digest' as const
};

/** Answers with the scripts that stand in `scripts`, and remembers what it was asked and told to save. */
class FakeApi {
  scripts: (IChunk[] | GemmaError)[] = [];
  asked: IQuestion[] = [];
  saved = new Map<string, IConversation>();
  started = () => undefined;

  async *chat(question: IQuestion, signal?: AbortSignal): AsyncGenerator<IChunk> {
    this.asked.push(structuredClone(question));
    const script = this.scripts.shift() ?? [{ text: 'Yes.' }, { finish: 'stop' }];
    if (script instanceof GemmaError) {
      throw script;
    }
    for (const chunk of script) {
      yield chunk;
      this.started();
      await Promise.resolve();
      if (signal?.aborted) {
        throw new DOMException('aborted', 'AbortError');
      }
    }
  }

  async saveConversation(conversation: IConversation): Promise<ISummary> {
    const before = this.saved.get(conversation.id);
    if (before && before.revision !== conversation.revision) {
      throw new GemmaError('changed', '', 'conversation_changed');
    }
    const { id, title } = conversation;
    const summary = { id, title, updated: 1, revision: conversation.revision + 1 };
    this.saved.set(id, structuredClone({ ...conversation, ...summary }));
    return summary;
  }

  async conversation(id: string): Promise<IConversation> {
    return structuredClone(this.saved.get(id) as IConversation);
  }

  async conversations(): Promise<ISummary[]> {
    return [...this.saved.values()];
  }

  async deleteConversation(id: string): Promise<void> {
    this.saved.delete(id);
  }
}

let api: FakeApi;
let model: ChatModel;
let remembered: string[];

beforeEach(() => {
  api = new FakeApi();
  remembered = [];
  let count = 0;
  const server = { card: async () => CARD, watch: vi.fn(), refresh: async () => undefined };
  const settings = { systemPrompt: '', temperature: null, maxTokens: 0, imageTokens: 0, thinking: false };
  const gemma = { api: api as unknown as IApi, server, settings, settingsChanged: new Signal({}) };
  model = new ChatModel({
    gemma: gemma as unknown as IGemma,
    resolve: async mention => [{ id: 'm', kind: 'text', name: mention.text, note: '', text: 'value' }],
    newId: () => `id-${++count}`,
    remember: id => remembered.push(id)
  });
});

const answer = (index = 0) => {
  const { answers, shown } = model.current.exchanges[index];
  return answers[shown];
};

describe('a question', () => {
  it('is answered, named and saved', async () => {
    api.scripts = [[{ thinking: 'Hm.' }, { text: 'It ' }, { text: 'works.' }, { finish: 'stop' }]];
    await model.send('Does it work?', []);
    expect(answer()).toMatchObject({ text: 'It works.', thinking: 'Hm.', model: 'Echo', finish: 'stop' });
    expect(model.current.title).toBe('Does it work?');
    expect(api.saved.get(model.current.id)?.exchanges).toHaveLength(1);
    expect(remembered).toContain(model.current.id);
    expect(model.busy).toBe(false);
  });

  it('carries what it mentions', async () => {
    await model.send('Mean of @df?', []);
    expect(model.current.exchanges[0].attachments.map(item => item.name)).toEqual(['@df']);
    expect(JSON.stringify(api.asked[0])).toContain('value');
  });

  it('is not asked while another is answered, nor empty', async () => {
    const first = model.send('one', []);
    await model.send('two', []);
    await first;
    await model.send('  ', []);
    expect(api.asked).toHaveLength(1);
  });

  it('says what went wrong, and the next one goes through', async () => {
    api.scripts = [new GemmaError('The server was lost.', 'Ask again.')];
    await model.send('one', []);
    expect(answer().error).toEqual({ message: 'The server was lost.', fix: 'Ask again.' });
    await model.send('two', []);
    expect(answer(1).text).toBe('Yes.');
    // What failed is no turn that the model remembers.
    expect(api.asked[1].messages.map(message => message.role)).toEqual(['user', 'user']);
  });

  it('can be stopped; what had come stays', async () => {
    api.scripts = [[{ text: 'one ' }, { text: 'two ' }, { text: 'three' }, { finish: 'stop' }]];
    api.started = () => void model.stop();
    await model.send('count', []);
    expect(answer()).toMatchObject({ text: 'one ', finish: 'cancelled' });
    expect(answer().error).toBeUndefined();
  });

  it('tells progress before the first word', async () => {
    const seen: (string | undefined)[] = [];
    model.changed.connect(() => seen.push(model.progress?.phase));
    api.scripts = [[{ progress: { phase: 'loading', done: 1, total: 2 } }, { text: 'x' }, { finish: 'stop' }]];
    await model.send('q', []);
    expect(seen).toContain('loading');
    expect(model.progress).toBeNull();
  });
});

describe('an answer', () => {
  it('given again leaves the first one', async () => {
    await model.send('q', []);
    api.scripts = [[{ text: 'Other.' }, { finish: 'stop' }]];
    await model.regenerate(model.current.exchanges[0]);
    expect(model.current.exchanges[0].answers.map(each => each.text)).toEqual(['Yes.', 'Other.']);
    expect(answer().text).toBe('Other.');
    model.show(model.current.exchanges[0], 0);
    expect(answer().text).toBe('Yes.');
  });

  it('of an edited question replaces what followed', async () => {
    await model.send('about @a', []);
    await model.send('two', []);
    await model.edit(model.current.exchanges[0], 'about @b');
    expect(model.current.exchanges).toHaveLength(1);
    expect(model.current.exchanges[0].attachments.map(item => item.name)).toEqual(['@b']);
    expect(api.asked[2].messages).toHaveLength(2); // a system turn about data, and the question
  });
});

describe('conversations', () => {
  it('are opened, renamed and removed', async () => {
    await model.send('first', []);
    const { id } = model.current;
    model.create();
    expect(model.current.exchanges).toEqual([]);
    await model.open(id);
    expect(answer().text).toBe('Yes.');
    await model.rename(id, 'A name');
    expect(api.saved.get(id)?.title).toBe('A name');
    await model.remove(id);
    expect(model.saved).toEqual([]);
    expect(model.current.exchanges).toEqual([]);
  });

  it('changed in another tab go on in a copy', async () => {
    await model.send('first', []);
    const { id } = model.current;
    (api.saved.get(id) as IConversation).revision = 7;
    await model.send('second', []);
    expect(model.current.id).not.toBe(id);
    expect(api.saved.get(id)?.revision).toBe(7);
    expect(api.saved.get(model.current.id)?.exchanges).toHaveLength(2);
  });

  it('that cannot be saved are a problem that is shown', async () => {
    api.saveConversation = async () => {
      throw new GemmaError('The disk is full.', 'Make room.');
    };
    await model.send('q', []);
    expect(model.problem).toEqual({ message: 'The disk is full.', fix: 'Make room.' });
    expect(answer().text).toBe('Yes.');
  });
});

it('a title is the first words', () => {
  expect(titleOf('  What\nis  this? ', [])).toBe('What is this?');
  expect(titleOf('x'.repeat(60), [])).toHaveLength(48);
});
