import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
const plugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:plugin',
  autoStart: true,
  activate: (app: JupyterFrontEnd) => void app
};
export default plugin;
