/** Menus about the model server: which model, load, unload, and what else it can do. */
import type { TranslationBundle } from '@jupyterlab/translation';
import type { CommandRegistry } from '@lumino/commands';
import { Menu } from '@lumino/widgets';
import { Commands, type IGemma } from './tokens';

/** A menu with the installed models; choosing one loads it. */
export function openModelMenu(
  commands: CommandRegistry,
  gemma: IGemma,
  trans: TranslationBundle,
  anchor: HTMLElement
): void {
  void gemma.server
    .card()
    .catch(() => undefined)
    .then(() => openMenu(commands, gemma, trans, anchor));
}

function openMenu(commands: CommandRegistry, { server }: IGemma, trans: TranslationBundle, anchor: HTMLElement): void {
  const menu = new Menu({ commands });
  menu.addClass('jg-Menu');
  menu.title.label = trans.__('Gemma');
  for (const { name, title } of server.models) {
    menu.addItem({ command: Commands.load, args: { model: name, title: title || name } });
  }
  menu.addItem({ type: 'separator' });
  [Commands.unload, Commands.pull].forEach(command => menu.addItem({ command }));
  menu.addItem({ type: 'separator' });
  [Commands.log, Commands.doctor, Commands.stopServer, Commands.remote].forEach(command => menu.addItem({ command }));
  menu.aboutToClose.connect(() => requestAnimationFrame(() => menu.dispose()));
  const { left, top } = anchor.getBoundingClientRect();
  menu.open(left, top);
}
