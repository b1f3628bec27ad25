/** Buttons that appear over the output under the pointer. */
import type { CommandRegistry } from '@lumino/commands';
import type { OutputKind } from '../outputs';
import { Commands } from '../tokens';

const OFFERS: Record<OutputKind, string[]> = {
  picture: [Commands.explainOutput, Commands.askOutput],
  audio: [Commands.transcribeOutput, Commands.askOutput],
  table: [Commands.summariseOutput, Commands.askOutput],
  error: [Commands.explainOutput, Commands.fixError],
  text: [Commands.askOutput],
  answer: []
};

export interface IOutputToolbarOptions {
  commands: CommandRegistry;
  label: string;
  kindAt: (child: HTMLElement) => OutputKind | null;
}

export class OutputToolbar {
  constructor(private readonly _options: IOutputToolbarOptions) {
    this._node.className = 'jg-OutputToolbar';
    this._node.setAttribute('role', 'toolbar');
    this._node.setAttribute('aria-label', _options.label);
  }

  /** Follow the pointer over `host`. */
  attach(host: HTMLElement): void {
    host.addEventListener('pointerover', event => this._over(event.target as HTMLElement));
    host.addEventListener('pointerleave', () => this._node.remove());
  }

  /** The output over which the buttons stand. */
  get output(): HTMLElement | null {
    return this._node.parentElement;
  }

  private _over(target: HTMLElement): void {
    const child = target.closest<HTMLElement>('.jp-OutputArea-child');
    if (child === this.output) {
      return;
    }
    const kind = child && this._options.kindAt(child);
    const offers = kind ? OFFERS[kind] : [];
    if (child && offers.length) {
      this._node.replaceChildren(...offers.map(command => this._button(command)));
      child.append(this._node);
    } else {
      this._node.remove();
    }
  }

  private _button(command: string): HTMLButtonElement {
    const { commands } = this._options;
    const button = document.createElement('button');
    const icon = commands.icon(command);
    button.type = 'button';
    button.title = commands.caption(command);
    button.dataset.command = command;
    if (icon && typeof icon !== 'string') {
      const mark = document.createElement('span');
      icon.render(mark);
      button.append(mark);
    }
    button.append(commands.label(command, { short: true }));
    button.addEventListener('click', () => void commands.execute(command, { from: 'hover' }));
    return button;
  }

  private readonly _node = document.createElement('div');
}
