import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { CodeCell, type Cell } from '@jupyterlab/cells';
import { INotebookTracker, NotebookActions, type NotebookPanel } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ITranslator, nullTranslator, type TranslationBundle } from '@jupyterlab/translation';
import type { IRenderHost } from '../components/host';
import type { IOffer } from '../components/inlinePrompt';
import { GemmaError } from '../errors';
import { askIcon, gemmaIcon, wrenchIcon } from '../icons';
import { fenced } from '../markdown';
import { cellAttachment, requireNotebook } from '../notebooks';
import { kindOf, plainText } from '../outputs';
import { textAttachment } from '../attach';
import { singleQuestion } from '../question';
import { makeRenderHost, tell } from '../renderHost';
import { Commands, IGemma, IGemmaPanel, type IAttachment } from '../tokens';
import { openInlinePrompt } from '../widgets/inlinePrompt';

const ONLY_CODE = 'Answer with the whole new cell in one code block, and nothing else.';

/** Actions on cells: edit by instruction, write a cell, fix an error. Nothing changes until it is accepted. */
export const cellsPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:cells',
  description: 'Edit, write and fix cells with the local model, as a difference that can be undone.',
  autoStart: true,
  requires: [IGemma, INotebookTracker, IRenderMimeRegistry],
  optional: [IGemmaPanel, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    gemma: IGemma,
    tracker: INotebookTracker,
    rendermime: IRenderMimeRegistry,
    chat: IGemmaPanel | null,
    translator: ITranslator | null
  ): void => {
    const trans = (translator ?? nullTranslator).load('jupyter_gemma');
    const prompts = new CellPrompts(gemma, makeRenderHost(app, tracker, rendermime, trans), trans);
    const describedBy = { args: { type: 'object', properties: {} } };
    const onActive = (action: (panel: NotebookPanel, cell: Cell) => void) => async () => {
      try {
        const panel = requireNotebook(tracker);
        if (panel.content.activeCell) {
          action(panel, panel.content.activeCell);
        }
      } catch (error) {
        tell(error);
      }
    };
    app.commands.addCommand(Commands.editCell, {
      label: trans.__('Edit Cell with Gemma…'),
      caption: trans.__('Say how this cell should change'),
      icon: gemmaIcon,
      describedBy,
      execute: onActive((panel, cell) => prompts.edit(cell))
    });
    app.commands.addCommand(Commands.generateCell, {
      label: trans.__('Write a Cell Below with Gemma…'),
      describedBy,
      execute: onActive((panel, cell) => prompts.generate(panel, cell))
    });
    app.commands.addCommand(Commands.askCell, {
      label: trans.__('Ask Gemma about this Cell…'),
      icon: askIcon,
      describedBy,
      execute: onActive((panel, cell) => chat?.compose([cellAttachment('cell', panel, cell)]))
    });
    app.commands.addCommand(Commands.fixError, {
      label: args => (args.short ? trans.__('Fix') : trans.__('Fix with Gemma')),
      caption: trans.__('Offer a corrected cell'),
      icon: wrenchIcon,
      describedBy,
      execute: onActive((panel, cell) => prompts.fix(failed(panel, cell)))
    });
  }
};

/** The cell that failed: the active one, else the nearest above it, else any. */
function failed(panel: NotebookPanel, active: Cell): CodeCell {
  const { widgets } = panel.content;
  const at = widgets.indexOf(active);
  const order = [...widgets.slice(0, at + 1).reverse(), ...widgets.slice(at + 1)];
  const found = order.find(cell => cell instanceof CodeCell && errorOf(cell) !== '');
  if (!found) {
    throw new GemmaError('No cell shows an error.', 'Run the one that fails.');
  }
  return found as CodeCell;
}

/** The traceback that a cell shows; "" without one. */
function errorOf(cell: CodeCell): string {
  const { model } = cell.outputArea;
  const at = [...Array(model.length).keys()].find(index => kindOf(model.get(index)) === 'error');
  return at === undefined ? '' : plainText(model.get(at));
}

class CellPrompts {
  constructor(
    private readonly _gemma: IGemma,
    private readonly _host: IRenderHost,
    private readonly _trans: TranslationBundle
  ) {}

  edit(cell: Cell): void {
    const source = cell.model.sharedModel.getSource();
    const words = `Change this cell as the instruction says. ${ONLY_CODE}\n\n${fenced(source, 'python')}\n\nInstruction: `;
    this._replace(cell, this._trans.__('How should this cell change?'), '', text => [words + text, []]);
  }

  fix(cell: CodeCell): void {
    const source = cell.model.sharedModel.getSource();
    const words = `This cell fails with the error above. Correct it. ${ONLY_CODE}\n\n${fenced(source, 'python')}\n\n`;
    const error = textAttachment('error', errorOf(cell));
    const instruction = this._trans.__('Fix this error');
    this._replace(cell, instruction, instruction, text => [words + text, [error]]);
  }

  generate(panel: NotebookPanel, cell: Cell): void {
    const words = `Write the next cell of this notebook. ${ONLY_CODE}\n\nInstruction: `;
    const before = cellAttachment('cell before', panel, cell);
    openInlinePrompt(cell, this._host, {
      title: this._trans.__('What should the next cell do?'),
      source: '',
      instruction: '',
      ask: (text, signal) => this._ask(words + text, [before], signal),
      accept: code => {
        panel.content.activeCellIndex = panel.content.widgets.indexOf(cell);
        NotebookActions.insertBelow(panel.content);
        panel.content.activeCell?.model.sharedModel.setSource(code);
      }
    });
  }

  private _replace(
    cell: Cell,
    title: string,
    instruction: string,
    question: (text: string) => [string, IAttachment[]]
  ): void {
    openInlinePrompt(cell, this._host, {
      title,
      source: cell.model.sharedModel.getSource(),
      instruction,
      ask: (text, signal) => this._ask(...question(text), signal),
      accept: code => cell.model.sharedModel.setSource(code) // one step for Undo
    });
  }

  private async _ask(text: string, attachments: IAttachment[], signal: AbortSignal): Promise<IOffer> {
    const { api, server, settings } = this._gemma;
    server.watch();
    const card = await server.card();
    return { chunks: api.chat(singleQuestion(text, attachments, card, settings), signal), notice: card.notice };
  }
}
