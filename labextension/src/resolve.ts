/** From a mention to attachments, and the mentions that can be typed. */
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { Contents } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';
import { UUID } from '@lumino/coreutils';
import { CodeCell } from '@jupyterlab/cells';
import type { ICandidate } from './components/host';
import { fromPath } from './drops';
import { GemmaError } from './errors';
import { partsOf, variablesOf } from './kernel';
import { matching, type Mention } from './mentions';
import {
  cellAttachment,
  cellNumbered,
  lastOutput,
  notebookAttachment,
  requireNotebook,
  selectionAttachment
} from './notebooks';
import { attachmentsOf } from './outputs';
import type { IAttachment, IGemma } from './tokens';

const MOST = 40;

export class Resolver {
  constructor(
    private readonly _tracker: INotebookTracker,
    private readonly _contents: Contents.IManager,
    private readonly _gemma: IGemma,
    private readonly _trans: TranslationBundle
  ) {}

  /** What a mention stands for. */
  async attach(mention: Mention): Promise<IAttachment[]> {
    const name = mention.text;
    if (mention.kind === 'file') {
      return [{ ...(await fromPath(this._path(mention.path), this._contents)), name }];
    }
    const panel = requireNotebook(this._tracker);
    switch (mention.kind) {
      case 'cell':
        return [cellAttachment(name, panel, cellNumbered(panel, mention.number))];
      case 'notebook':
        return [notebookAttachment(name, panel)];
      case 'selection':
        return [selectionAttachment(name, panel)];
      case 'output':
        return this._output(name, mention.number);
      default:
        return this._variable(name, mention.expression);
    }
  }

  /** The mentions that begin with what is typed. */
  async candidates(query: string): Promise<ICandidate[]> {
    if (query.startsWith('file:')) {
      return this._files(query.slice(5));
    }
    const all = [...(await this._variables()), ...this._fixed(), ...this._numbered()];
    return matching(all, query, item => item.label).slice(0, MOST);
  }

  private async _output(name: string, number: number): Promise<IAttachment[]> {
    const panel = requireNotebook(this._tracker);
    const target = lastOutput(panel, cellNumbered(panel, number));
    if (!target) {
      throw new GemmaError(`Cell ${number} has no output.`, 'Run it first.');
    }
    const { table_form } = await this._gemma.server.card();
    return (await attachmentsOf(target, this._gemma.settings.rows, table_form)).map(item => ({ ...item, name }));
  }

  private async _variable(name: string, expression: string): Promise<IAttachment[]> {
    const kernel = requireNotebook(this._tracker).sessionContext.session?.kernel;
    if (!kernel) {
      throw new GemmaError(`${name} cannot be read: the notebook has no kernel.`, 'Start one.');
    }
    const { table_form } = await this._gemma.server.card();
    const parts = await partsOf(kernel, expression, this._gemma.settings.rows, table_form);
    return parts.map(part => ({ id: UUID.uuid4(), name, ...part }));
  }

  private async _variables(): Promise<ICandidate[]> {
    const kernel = this._tracker.currentWidget?.sessionContext.session?.kernel;
    const variables = kernel ? await variablesOf(kernel).catch(() => []) : [];
    return variables.map(({ name, type, note }) => ({
      insert: `@${name} `,
      label: name,
      detail: [type, note].filter(Boolean).join(' · ')
    }));
  }

  private _fixed(): ICandidate[] {
    const words: [string, string][] = [
      ['selection', this._trans.__('what is selected')],
      ['notebook', this._trans.__('all cells')]
    ];
    const file: [string, string] = ['file:', this._trans.__('a file beside the notebook')];
    return [...words, file].map(([label, detail]) => {
      const end = label.endsWith(':') ? '' : ' ';
      return { insert: `@${label}${end}`, label, detail };
    });
  }

  private _numbered(): ICandidate[] {
    const cells = this._tracker.currentWidget?.content.widgets ?? [];
    return cells.flatMap((cell, index) => {
      const count = cell instanceof CodeCell ? cell.model.executionCount : null;
      const number = count ?? index + 1;
      const detail = cell.model.sharedModel.getSource().split('\n')[0].slice(0, 40);
      const kinds = count === null ? ['cell'] : ['cell', 'output'];
      return kinds.map(kind => ({ insert: `@${kind}:${number} `, label: `${kind}:${number}`, detail }));
    });
  }

  private async _files(query: string): Promise<ICandidate[]> {
    const folder = query.includes('/') ? query.slice(0, query.lastIndexOf('/') + 1) : '';
    const listed = await this._contents.get(this._path(folder), { type: 'directory', content: true });
    const names = (listed.content as Contents.IModel[]).map(({ name, type }) => ({
      path: folder + name + (type === 'directory' ? '/' : ''),
      end: type === 'directory' ? '' : ' '
    }));
    return matching(names, query, item => item.path)
      .slice(0, MOST)
      .map(({ path, end }) => ({ insert: `@file:${path}${end}`, label: path, detail: '' }));
  }

  /** Paths are relative to the notebook's folder. */
  private _path(path: string): string {
    const notebook = this._tracker.currentWidget?.context.path ?? '';
    const folder = notebook.includes('/') ? notebook.slice(0, notebook.lastIndexOf('/') + 1) : '';
    return folder + path;
  }
}
