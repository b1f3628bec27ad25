import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookTracker, NotebookActions, type NotebookPanel } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import type { LabIcon } from '@jupyterlab/ui-components';
import { CodeCell } from '@jupyterlab/cells';
import { OutputAnswers, type OutputAction } from '../ask';
import { GemmaError } from '../errors';
import { askIcon, explainIcon, soundIcon, tableIcon, toMarkdownIcon } from '../icons';
import { harmless } from '../markdown';
import { lastOutput, requireNotebook, targetAt } from '../notebooks';
import { ANSWER_MIME, attachmentsOf, kindOf, outputOf, savedAnswer, type ITarget, type OutputKind } from '../outputs';
import { makeRenderHost, tell } from '../renderHost';
import { Commands, IGemma, IGemmaPanel } from '../tokens';
import { AnswerRenderer, type IAnswerHost } from '../widgets/answerRenderer';
import { OutputToolbar } from '../widgets/outputToolbar';

/** Actions on outputs, and answers that stand under them. */
export const outputsPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:outputs',
  description: 'Explain, transcribe, summarise and ask about outputs where they stand.',
  autoStart: true,
  requires: [IGemma, INotebookTracker, IRenderMimeRegistry],
  optional: [IGemmaPanel, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    gemma: IGemma,
    tracker: INotebookTracker,
    rendermime: IRenderMimeRegistry,
    panel: IGemmaPanel | null,
    translator: ITranslator | null
  ): void => {
    const trans = (translator ?? nullTranslator).load('jupyter_gemma');
    const answers = new OutputAnswers(gemma);
    const host: IAnswerHost = {
      ...makeRenderHost(app, tracker, rendermime, trans),
      answers,
      remove: node => withTarget(targetAt(tracker, node), removeAnswer),
      toMarkdown: node => withTarget(targetAt(tracker, node), moveAnswer)
    };
    rendermime.addFactory({
      safe: true,
      mimeTypes: [ANSWER_MIME],
      defaultRank: 0,
      createRenderer: () => new AnswerRenderer(host)
    });
    const toolbar = new OutputToolbar({
      commands: app.commands,
      label: trans.__('Ask Gemma about this output'),
      kindAt: child => kindAt(targetAt(tracker, child))
    });
    tracker.forEach(({ content }) => toolbar.attach(content.node));
    tracker.widgetAdded.connect((_, { content }) => toolbar.attach(content.node));
    addCommands(app, { gemma, tracker, answers, panel, toolbar }, trans);
    explainByThemselves(gemma, tracker, answers);
  }
};

interface IContext {
  gemma: IGemma;
  tracker: INotebookTracker;
  answers: OutputAnswers;
  panel: IGemmaPanel | null;
  toolbar: OutputToolbar;
}

type Source = { from?: unknown };

/** The output under the hover buttons or under the context menu; null for the palette and for shortcuts. */
function targetOf(app: JupyterFrontEnd, { tracker, toolbar }: IContext, { from }: Source): ITarget | null {
  if (from === 'hover') {
    return targetAt(tracker, toolbar.output);
  }
  const isOutput = (node: HTMLElement) => node.classList.contains('jp-OutputArea-child');
  return from === 'menu' ? targetAt(tracker, app.contextMenuHitTest(isOutput) ?? null) : null;
}

/** The last output of one of `kinds`, from the active cell upwards. */
function lastOf(tracker: INotebookTracker, kinds: OutputKind[]): ITarget {
  const panel = requireNotebook(tracker);
  const { activeCellIndex, widgets } = panel.content;
  for (let at = activeCellIndex; at >= 0; at--) {
    const found = lastOutput(panel, widgets[at]);
    if (found && kinds.includes(kindOf(outputOf(found)))) {
      return found;
    }
  }
  throw new GemmaError('No output above the active cell can be used for this.', 'Run a cell that shows one.');
}

const ASKED: OutputKind[] = ['picture', 'audio', 'table', 'error', 'text'];
const FROM = { args: { type: 'object', properties: { from: { type: 'string', enum: ['hover', 'menu'] } } } };

function addCommands(app: JupyterFrontEnd, context: IContext, trans: IAnswerHost['trans']): void {
  const find = (args: Source, kinds: OutputKind[]) => targetOf(app, context, args) ?? lastOf(context.tracker, kinds);
  const fits = (args: Source, kinds: OutputKind[]) =>
    args.from !== 'menu' || kinds.includes(kindAt(targetOf(app, context, args)) ?? 'answer');
  const ask = (id: string, short: string, label: string, icon: LabIcon, kinds: OutputKind[], action: OutputAction) => {
    app.commands.addCommand(id, {
      label: args => (args.short ? short : label),
      caption: label,
      icon,
      describedBy: FROM,
      isVisible: args => fits(args, kinds),
      execute: args => attempt(() => answer(context, find(args, kinds), action))
    });
  };
  const explained: OutputKind[] = ['picture', 'error', 'table'];
  ask(Commands.explainOutput, trans.__('Explain'), trans.__('Explain with Gemma'), explainIcon, explained, 'explain');
  ask(
    Commands.transcribeOutput,
    trans.__('Transcribe'),
    trans.__('Transcribe with Gemma'),
    soundIcon,
    ['audio'],
    'transcribe'
  );
  ask(
    Commands.summariseOutput,
    trans.__('Summarise'),
    trans.__('Summarise with Gemma'),
    tableIcon,
    ['table'],
    'summarise'
  );
  app.commands.addCommand(Commands.askOutput, {
    label: args => (args.short ? trans.__('Ask…') : trans.__('Ask Gemma…')),
    caption: trans.__('Ask about this output in the panel'),
    icon: askIcon,
    describedBy: FROM,
    isVisible: args => fits(args, ASKED),
    execute: args => attempt(() => compose(context, find(args, ASKED)))
  });
  app.commands.addCommand(Commands.removeAnswer, {
    label: trans.__('Remove this Answer'),
    describedBy: FROM,
    isVisible: args => !fits(args, ASKED),
    execute: args => withTarget(targetOf(app, context, args), removeAnswer)
  });
  app.commands.addCommand(Commands.moveAnswer, {
    label: trans.__('Move this Answer to a Markdown Cell'),
    icon: toMarkdownIcon,
    describedBy: FROM,
    isVisible: args => !fits(args, ASKED),
    execute: args => withTarget(targetOf(app, context, args), moveAnswer)
  });
}

async function attempt(action: () => Promise<unknown>): Promise<void> {
  try {
    await action();
  } catch (error) {
    tell(error);
  }
}

async function answer({ answers }: IContext, target: ITarget, action: OutputAction): Promise<void> {
  const isError = kindOf(outputOf(target)) === 'error';
  await answers.ask(target, isError ? 'error' : action);
}

async function compose({ gemma, panel }: IContext, target: ITarget): Promise<void> {
  const { table_form } = await gemma.server.card();
  panel?.compose(await attachmentsOf(target, gemma.settings.rows, table_form));
}

function kindAt(target: ITarget | null): OutputKind | null {
  return target && kindOf(outputOf(target));
}

function withTarget(target: ITarget | null, action: (target: ITarget) => void): void {
  if (target && savedAnswer(outputOf(target))) {
    action(target);
  }
}

function removeAnswer({ cell, index }: ITarget): void {
  cell.outputArea.model.remove(index);
}

/** A Markdown cell below takes the answer's text, which loads nothing there either. */
function moveAnswer(target: ITarget): void {
  const { panel, cell, index } = target;
  const text = harmless(savedAnswer(outputOf(target))?.text ?? '');
  const at = panel.content.widgets.indexOf(cell) + 1;
  panel.content.model?.sharedModel.insertCell(at, { cell_type: 'markdown', source: text });
  cell.outputArea.model.remove(index);
}

/** With the setting on, every new picture is explained when its cell has run. */
function explainByThemselves(gemma: IGemma, tracker: INotebookTracker, answers: OutputAnswers): void {
  NotebookActions.executed.connect((_, { cell, notebook, success }) => {
    const panel = tracker.find((widget: NotebookPanel) => widget.content === notebook);
    if (gemma.settings.autoExplain && success && panel && cell instanceof CodeCell) {
      // From the last one upwards: an answer moves only what stands below it.
      picturesOf(panel, cell)
        .reverse()
        .forEach(target => void answers.ask(target, 'explain'));
    }
  });
}

function picturesOf(panel: NotebookPanel, cell: CodeCell): ITarget[] {
  const all = [...Array(cell.outputArea.model.length).keys()].map(index => ({ panel, cell, index }));
  return all.filter(target => kindOf(outputOf(target)) === 'picture');
}
