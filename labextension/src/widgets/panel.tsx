import { ReactWidget } from '@jupyterlab/ui-components';
import type { Drag } from '@lumino/dragdrop';
import type { Message } from '@lumino/messaging';
import { Signal } from '@lumino/signaling';
import * as React from 'react';
import type { IDraft } from '../components/composer';
import type { IPanelHost } from '../components/host';
import { PanelView } from '../components/panel';
import { LAB_TYPES } from '../drops';
import { explain } from '../errors';
import { gemmaIcon } from '../icons';
import type { IAttachment } from '../tokens';

const EVENTS = ['dragover', 'dragleave', 'drop', 'lm-dragenter', 'lm-dragover', 'lm-dragleave', 'lm-drop'];

/** The side panel; takes what is dropped on it. */
export class GemmaPanel extends ReactWidget {
  constructor(
    private readonly _host: IPanelHost,
    private readonly _fromLab: (drop: Drag.Event) => Promise<IAttachment[]>
  ) {
    super();
    this.id = 'jupyter-gemma-panel';
    this.title.icon = gemmaIcon;
    this.title.caption = _host.trans.__('Gemma');
    this.addClass('jg-Panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', _host.trans.__('Gemma'));
    this.node.dataset.lmSuppressShortcuts = 'true'; // typing here is for us
  }

  compose(attachments: IAttachment[], text?: string): void {
    // The composer exists once the panel has been shown.
    void this.renderPromise?.then(() => this._drafts.emit({ attachments, text }));
  }

  handleEvent(event: Event): void {
    const drop = event as Drag.Event;
    if (event.type.startsWith('lm-') && !LAB_TYPES.some(type => drop.mimeData.hasData(type))) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    this.toggleClass('jg-mod-drop', event.type.endsWith('over') || event.type.endsWith('enter'));
    if (event.type === 'lm-dragover') {
      drop.dropAction = drop.proposedAction;
    } else if (event.type === 'lm-drop') {
      drop.dropAction = 'copy';
      this._take(this._fromLab(drop));
    } else if (event.type === 'drop') {
      this._take(this._host.transfer((event as DragEvent).dataTransfer as DataTransfer));
    }
  }

  protected render(): JSX.Element {
    return <PanelView host={this._host} drafts={this._drafts} />;
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    EVENTS.forEach(name => this.node.addEventListener(name, this));
  }

  protected override onBeforeDetach(message: Message): void {
    EVENTS.forEach(name => this.node.removeEventListener(name, this));
    super.onBeforeDetach(message);
  }

  protected override onActivateRequest(): void {
    void this.renderPromise?.then(() => this.node.querySelector<HTMLElement>('.jg-Composer textarea')?.focus());
  }

  private _take(found: Promise<IAttachment[]>): void {
    found.then(
      attachments => this.compose(attachments),
      error => {
        this._host.model.problem = explain(error);
        this.update();
      }
    );
  }

  private _drafts = new Signal<this, IDraft>(this);
}
