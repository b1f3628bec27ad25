import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Dialog, InputDialog, showDialog } from '@jupyterlab/apputils';
import { ITranslator, nullTranslator, type TranslationBundle } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import { tell } from '../renderHost';
import { openModelMenu } from '../serverMenu';
import { Commands, IGemma } from '../tokens';

const REPOSITORY = 'google/gemma-4-12B-it';

/** Commands about the model server: load, unload, stop, pull, log, doctor, another server. */
export const serverPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:server',
  description: 'Commands that load, unload and look after the model server.',
  autoStart: true,
  requires: [IGemma],
  optional: [ITranslator],
  activate: (app: JupyterFrontEnd, gemma: IGemma, translator: ITranslator | null): void => {
    const trans = (translator ?? nullTranslator).load('jupyter_gemma');
    addModelCommands(app, gemma, trans);
    addTerminalCommands(app, gemma, trans);
    app.commands.addCommand(Commands.serverMenu, {
      label: trans.__('Gemma Model Server…'),
      describedBy: { args: { type: 'object', properties: {} } },
      execute: () => {
        const item = document.querySelector<HTMLElement>('.jg-Status, #jupyter-gemma-panel .jg-Model');
        openModelMenu(app.commands, gemma, trans, item ?? document.body);
      }
    });
    app.commands.addCommand(Commands.remote, {
      label: trans.__('Use Another Server…'),
      caption: trans.__('Ask an OpenAI-compatible server instead of the local one'),
      describedBy: { args: { type: 'object', properties: {} } },
      execute: () => setRemote(gemma, trans).catch(tell)
    });
  }
};

function addModelCommands({ commands }: JupyterFrontEnd, { api, server }: IGemma, trans: TranslationBundle): void {
  const model = { type: 'string', description: 'Name of the model; empty for the default one.' };
  commands.addCommand(Commands.load, {
    label: args => (args.title ? trans.__('Load %1', String(args.title)) : trans.__('Load Gemma Model')),
    describedBy: { args: { type: 'object', properties: { model } } },
    isToggleable: true,
    isToggled: args => !!args.model && args.model === server.status.model && server.status.state !== 'loading',
    execute: async args => {
      const name = String(args.model ?? '');
      server.choose(name);
      await server.load(name).catch(tell);
    }
  });
  commands.addCommand(Commands.unload, {
    label: trans.__('Unload the Model'),
    caption: trans.__('Free the memory of the model'),
    describedBy: { args: { type: 'object', properties: {} } },
    isEnabled: () => ['ready', 'busy', 'loading'].includes(server.status.state),
    execute: () => api.unload().then(() => server.refresh(), tell)
  });
  commands.addCommand(Commands.stopServer, {
    label: trans.__('Stop the Model Server'),
    describedBy: { args: { type: 'object', properties: {} } },
    isEnabled: () => !['stopped', 'remote', 'missing'].includes(server.status.state),
    execute: () => api.stopServer().then(() => server.refresh(), tell)
  });
}

function addTerminalCommands(app: JupyterFrontEnd, gemma: IGemma, trans: TranslationBundle): void {
  const add = (command: string, label: string, words: () => Promise<string | null>) =>
    app.commands.addCommand(command, {
      label,
      describedBy: { args: { type: 'object', properties: {} } },
      execute: async () => {
        const line = await words();
        if (line) {
          await inTerminal(app, `${gemma.server.command} ${line}`).catch(tell);
        }
      }
    });
  add(Commands.log, trans.__('Show the Log'), async () => 'logs');
  add(Commands.doctor, trans.__('Check the Installation'), async () => 'doctor');
  add(Commands.pull, trans.__('Download a Model…'), async () => {
    const { value } = await InputDialog.getText({
      title: trans.__('Download which model?'),
      label: trans.__('24 GB for the 12B; a terminal shows how far it is, and it can be continued.'),
      text: REPOSITORY,
      okLabel: trans.__('Download')
    });
    return value && /^[\w./:-]+$/.test(value) ? `pull ${value}` : null;
  });
}

/** Run a line in a new terminal, where it can be watched and interrupted. */
async function inTerminal(app: JupyterFrontEnd, line: string): Promise<void> {
  const session = await app.serviceManager.terminals.startNew();
  await app.commands.execute('terminal:open', { name: session.name });
  session.send({ type: 'stdin', content: [`${line}\r`] });
}

/** Ask for the address and key of another server. The key is sent once and never read back. */
async function setRemote({ api, server }: IGemma, trans: TranslationBundle): Promise<void> {
  const { base_url, has_key } = await api.remote();
  const body = new RemoteForm(base_url, has_key, trans);
  const { button } = await showDialog({
    title: trans.__('Another server'),
    body,
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__('Save') })]
  });
  if (button.accept) {
    await api.setRemote(body.address.value, body.key.value || null);
    await server.refresh();
  }
}

class RemoteForm extends Widget {
  constructor(address: string, hasKey: boolean, trans: TranslationBundle) {
    super();
    this.addClass('jg-Form');
    this.address.value = address;
    this.address.placeholder = trans.__('http://host:port/v1');
    this.key.type = 'password';
    this.key.autocomplete = 'off';
    this.key.placeholder = hasKey ? trans.__('as it is') : trans.__('none');
    this._add(trans.__('Address (empty: the server on this machine)'), this.address);
    this._add(trans.__('Key'), this.key);
  }

  readonly address = document.createElement('input');
  readonly key = document.createElement('input');

  private _add(words: string, input: HTMLInputElement): void {
    const label = document.createElement('label');
    input.className = 'jp-mod-styled';
    label.append(words, input);
    this.node.append(label);
  }
}
