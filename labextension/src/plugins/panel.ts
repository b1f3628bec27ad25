import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookTracker } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ITranslator, nullTranslator, type TranslationBundle } from '@jupyterlab/translation';
import { UUID } from '@lumino/coreutils';
import { collect, newAnswer } from '../answer';
import type { ICandidate, IPanelHost } from '../components/host';
import { fromFiles, fromLab, fromTransfer } from '../drops';
import { gemmaIcon } from '../icons';
import { commandOf, matching } from '../mentions';
import { ChatModel } from '../model';
import { singleQuestion, wordsFor } from '../question';
import { makeRenderHost } from '../renderHost';
import { Resolver } from '../resolve';
import { openModelMenu } from '../serverMenu';
import { Commands, IGemma, IGemmaPanel, type IAttachment } from '../tokens';
import { GemmaPanel } from '../widgets/panel';

const SHOWN = 'jupyter-gemma:conversation';

/** The side panel. */
export const panelPlugin: JupyterFrontEndPlugin<IGemmaPanel> = {
  id: 'jupyter-gemma:panel',
  description: 'A conversation with the local model beside the notebook.',
  autoStart: true,
  provides: IGemmaPanel,
  requires: [IGemma, INotebookTracker, IRenderMimeRegistry],
  optional: [ITranslator, ILayoutRestorer],
  activate: (
    app: JupyterFrontEnd,
    gemma: IGemma,
    tracker: INotebookTracker,
    rendermime: IRenderMimeRegistry,
    translator: ITranslator | null,
    restorer: ILayoutRestorer | null
  ): IGemmaPanel => {
    const trans = (translator ?? nullTranslator).load('jupyter_gemma');
    const { contents } = app.serviceManager;
    const resolver = new Resolver(tracker, contents, gemma, trans);
    const model = new ChatModel({
      gemma,
      resolve: mention => resolver.attach(mention),
      newId: () => UUID.uuid4(),
      remember: id => sessionStorage.setItem(SHOWN, id)
    });
    const host: IPanelHost = {
      ...makeRenderHost(app, tracker, rendermime, trans),
      gemma,
      model,
      candidates: async (sign, query) => (sign === '@' ? resolver.candidates(query) : slashes(trans, query)),
      files: fromFiles,
      transfer: fromTransfer,
      transcribe: clip => transcribe(gemma, clip),
      command: (text, attachments) => runCommand(app, gemma, model, text, attachments),
      chooseModel: anchor => openModelMenu(app.commands, gemma, trans, anchor)
    };
    const panel = new GemmaPanel(host, drop => fromLab(drop.mimeData, contents));
    app.shell.add(panel, 'right', { rank: 900, type: 'Gemma' });
    restorer?.add(panel, panel.id);
    addCommands(app, panel, model, trans);
    void restore(app, model);
    return {
      compose: (attachments, text) => {
        app.shell.activateById(panel.id);
        panel.compose(attachments, text);
      }
    };
  }
};

function addCommands(app: JupyterFrontEnd, panel: GemmaPanel, model: ChatModel, trans: TranslationBundle): void {
  const describedBy = { args: { type: 'object', properties: {} } };
  app.commands.addCommand(Commands.open, {
    label: trans.__('Gemma'),
    caption: trans.__('Open the Gemma panel'),
    icon: gemmaIcon,
    describedBy,
    execute: () => app.shell.activateById(panel.id)
  });
  app.commands.addCommand(Commands.newChat, {
    label: trans.__('New Gemma Conversation'),
    describedBy,
    execute: () => {
      model.create();
      app.shell.activateById(panel.id);
    }
  });
  app.commands.addCommand(Commands.stop, {
    label: trans.__('Stop Gemma'),
    describedBy,
    isEnabled: () => model.busy,
    execute: () => model.stop()
  });
}

/** Show the conversation that this tab showed before it was reloaded. */
async function restore(app: JupyterFrontEnd, model: ChatModel): Promise<void> {
  await app.restored;
  await model.refresh();
  const id = sessionStorage.getItem(SHOWN);
  if (model.saved.some(summary => summary.id === id)) {
    await model.open(id as string);
  }
}

// -- slash commands ----------------------------------------------------------------------------------------------

function slashes(trans: TranslationBundle, query: string): ICandidate[] {
  const all: [string, string][] = [
    ['explain', trans.__('the last plot or output, under it')],
    ['transcribe', trans.__('the last clip, under it')],
    ['summarise', trans.__('this notebook, or what you name with @')],
    ['fix', trans.__('the last error, as a difference')],
    ['new', trans.__('conversation')],
    ['status', trans.__('load or unload a model')]
  ];
  const items = all.map(([name, detail]) => ({ insert: `/${name} `, label: `/${name}`, detail }));
  return matching(items, `/${query}`, item => item.label);
}

/** What a command does when it names nothing. */
const ALONE: Record<string, string> = {
  explain: Commands.explainOutput,
  transcribe: Commands.transcribeOutput,
  fix: Commands.fixError,
  new: Commands.newChat,
  status: Commands.serverMenu
};

async function runCommand(
  app: JupyterFrontEnd,
  gemma: IGemma,
  model: ChatModel,
  text: string,
  attachments: IAttachment[]
): Promise<boolean> {
  const found = commandOf(text);
  if (!found) {
    return false;
  }
  const { name, rest } = found;
  if (!rest && !attachments.length && ALONE[name]) {
    await app.commands.execute(ALONE[name], {});
    return true;
  }
  const words = wordsFor(name, await gemma.server.card());
  if (words) {
    const subject = rest || (attachments.length ? '' : '@notebook');
    await model.send([subject, words].filter(Boolean).join(' '), attachments);
  }
  return Boolean(words);
}

async function transcribe(gemma: IGemma, clip: IAttachment): Promise<string> {
  const card = await gemma.server.card();
  const answer = newAnswer();
  const question = singleQuestion(wordsFor('transcribe', card), [clip], card, gemma.settings);
  for await (const progress of collect(gemma.api.chat(question), answer)) {
    void progress;
  }
  return answer.text.trim();
}
