import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { Commands } from '../tokens';

const HIDDEN: string[] = [Commands.removeAnswer, Commands.moveAnswer];

/** Our commands in the command palette. */
export const palettePlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gemma:palette',
  description: 'Lists the commands of Gemma in the command palette.',
  autoStart: true,
  optional: [ICommandPalette, ITranslator],
  activate: (app: JupyterFrontEnd, palette: ICommandPalette | null, translator: ITranslator | null): void => {
    const category = (translator ?? nullTranslator).load('jupyter_gemma').__('Gemma');
    Object.values(Commands)
      .filter(command => !HIDDEN.includes(command))
      .forEach(command => palette?.addItem({ command, category }));
  }
};
