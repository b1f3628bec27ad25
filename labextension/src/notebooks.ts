/** Cells and outputs of the notebook at hand, by number, as attachments, and changed on the user's word. */
import { CodeCell, type Cell } from '@jupyterlab/cells';
import { NotebookActions, type INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';
import { cellText, cut, textAttachment } from './attach';
import { GemmaError } from './errors';
import { kindOf, plainText, type ITarget } from './outputs';
import type { IAttachment } from './tokens';

export type Place = 'above' | 'below' | 'replace' | 'run';

export function requireNotebook(tracker: INotebookTracker): NotebookPanel {
  if (!tracker.currentWidget) {
    throw new GemmaError('No notebook is open.', 'Open one first.');
  }
  return tracker.currentWidget;
}

/** The cell with `[number]` before it, else the one at that place, counted from 1. */
export function cellNumbered(panel: NotebookPanel, number: number): Cell {
  const cells = panel.content.widgets;
  const run = cells.find(cell => cell instanceof CodeCell && cell.model.executionCount === number);
  const found = run ?? cells[number - 1];
  if (!found) {
    throw new GemmaError(`There is no cell ${number}.`, `The notebook has ${cells.length} cells.`);
  }
  return found;
}

/** The last output of a cell that is no answer of ours. */
export function lastOutput(panel: NotebookPanel, cell: Cell | null): ITarget | null {
  if (!(cell instanceof CodeCell)) {
    return null;
  }
  const { model } = cell.outputArea;
  for (let index = model.length - 1; index >= 0; index--) {
    if (kindOf(model.get(index)) !== 'answer') {
      return { panel, cell, index };
    }
  }
  return null;
}

/** The output that a node belongs to. */
export function targetAt(tracker: INotebookTracker, node: Element | null): ITarget | null {
  const child = node?.closest('.jp-OutputArea-child');
  const panel = tracker.find(widget => !!child && widget.node.contains(child));
  const cell = panel?.content.widgets.find(widget => widget.node.contains(child as Node));
  if (!panel || !(cell instanceof CodeCell)) {
    return null;
  }
  const index = cell.outputArea.widgets.findIndex(widget => widget.node === child);
  return index >= 0 && index < cell.outputArea.model.length ? { panel, cell, index } : null;
}

/** A cell with its outputs as text. */
export function cellAttachment(name: string, panel: NotebookPanel, cell: Cell): IAttachment {
  const number = panel.content.widgets.indexOf(cell) + 1;
  const { type, sharedModel } = cell.model;
  const source = cellText({ cell_type: type, source: sharedModel.getSource() }, number);
  const outputs = cell instanceof CodeCell ? outputTexts(cell) : [];
  return textAttachment(name, [source, ...outputs].join('\n'));
}

function outputTexts(cell: CodeCell): string[] {
  const { model } = cell.outputArea;
  const texts = [...Array(model.length).keys()].map(index => plainText(model.get(index))).filter(Boolean);
  return texts.length ? ['output:', ...texts.map(text => cut(text, 4000))] : [];
}

export function notebookAttachment(name: string, panel: NotebookPanel): IAttachment {
  const cells = panel.content.widgets.map(cell => cellAttachment('', panel, cell).text ?? '');
  return textAttachment(name, cells.join('\n\n'), 'text', `${cells.length} cells`);
}

/** What is selected in the active cell's editor, else on the page. */
export function selectionAttachment(name: string, panel: NotebookPanel): IAttachment {
  const editor = panel.content.activeCell?.editor;
  const selection = editor?.getSelection();
  const source = editor?.model.sharedModel.getSource() ?? '';
  const inEditor = selection
    ? source.slice(editor?.getOffsetAt(selection.start), editor?.getOffsetAt(selection.end))
    : '';
  const text = inEditor || document.getSelection()?.toString() || '';
  if (!text) {
    throw new GemmaError('Nothing is selected.', 'Select some text in the notebook.');
  }
  return textAttachment(name, text);
}

/** Put code into the notebook. */
export async function placeCode(panel: NotebookPanel, code: string, place: Place): Promise<void> {
  const { content, sessionContext } = panel;
  if (place === 'above') {
    NotebookActions.insertAbove(content);
  } else if (place !== 'replace') {
    NotebookActions.insertBelow(content);
  }
  content.activeCell?.model.sharedModel.setSource(code);
  if (content.activeCell) {
    await content.scrollToCell(content.activeCell);
  }
  if (place === 'run') {
    await NotebookActions.run(content, sessionContext);
  }
}
