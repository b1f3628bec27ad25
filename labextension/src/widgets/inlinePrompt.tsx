import type { Cell } from '@jupyterlab/cells';
import { ReactWidget } from '@jupyterlab/ui-components';
import { Widget } from '@lumino/widgets';
import * as React from 'react';
import { RenderContext, type IRenderHost } from '../components/host';
import { InlinePrompt, type IInlinePromptProps } from '../components/inlinePrompt';

/** The inline prompt, between a cell's input and its outputs. */
class InlinePromptWidget extends ReactWidget {
  constructor(
    private readonly _host: IRenderHost,
    private readonly _props: IInlinePromptProps
  ) {
    super();
    this.addClass('jg-InlinePrompt');
    this.node.dataset.lmSuppressShortcuts = 'true';
  }

  protected render(): JSX.Element {
    return (
      <RenderContext.Provider value={this._host}>
        <InlinePrompt {...this._props} />
      </RenderContext.Provider>
    );
  }
}

/** Open an inline prompt at `cell`; one that is open there is closed. */
export function openInlinePrompt(cell: Cell, host: IRenderHost, props: Omit<IInlinePromptProps, 'close'>): void {
  open.get(cell)?.dispose();
  const close = () => {
    widget.dispose();
    cell.editor?.focus();
  };
  const accept = (code: string) => {
    props.accept(code);
    close();
  };
  const widget = new InlinePromptWidget(host, { ...props, accept, close });
  open.set(cell, widget);
  cell.disposed.connect(() => widget.dispose());
  const input = cell.node.querySelector<HTMLElement>('.jp-Cell-inputWrapper');
  Widget.attach(widget, cell.node, (input?.nextElementSibling as HTMLElement | null) ?? null);
}

const open = new WeakMap<Cell, Widget>();
