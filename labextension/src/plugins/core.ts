import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { Signal } from '@lumino/signaling';
import { Api } from '../api';
import { Server } from '../server';
import { IGemma, PLUGIN, type IApi, type IServer, type ISettings } from '../tokens';

const DEFAULTS: ISettings = {
  systemPrompt: '',
  imageTokens: 0,
  rows: 5,
  thinking: false,
  temperature: null,
  maxTokens: 0,
  autoExplain: false,
  inlineCompletion: false,
  microphone: 'dictate'
};

class Gemma implements IGemma {
  constructor(
    readonly api: IApi,
    readonly server: IServer
  ) {}

  settings: ISettings = DEFAULTS;
  readonly settingsChanged: Signal<IGemma, ISettings> = new Signal<IGemma, ISettings>(this);

  set(values: ISettings): void {
    this.settings = values;
    this.settingsChanged.emit(values);
  }
}

/** Questions, the server's state and the settings, for all other plugins. */
export const corePlugin: JupyterFrontEndPlugin<IGemma> = {
  id: PLUGIN,
  description: 'Questions to the local Gemma model, its state, and the settings.',
  autoStart: true,
  provides: IGemma,
  optional: [ISettingRegistry],
  activate: (app: JupyterFrontEnd, registry: ISettingRegistry | null): IGemma => {
    const api = new Api(app.serviceManager.serverSettings);
    const server = new Server(api);
    const gemma = new Gemma(api, server);
    void app.restored.then(() => server.start());
    registry?.load(PLUGIN).then(
      settings => {
        const read = () => gemma.set({ ...DEFAULTS, ...(settings.composite as unknown as ISettings) });
        settings.changed.connect(read);
        read();
      },
      error => console.error('jupyter-gemma: the settings cannot be read', error)
    );
    return gemma;
  }
};
