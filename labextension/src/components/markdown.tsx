import { addAboveIcon, addBelowIcon, copyIcon, runIcon } from '@jupyterlab/ui-components';
import type { IRenderMime } from '@jupyterlab/rendermime';
import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import * as React from 'react';
import { newNotebookIcon, replaceIcon } from '../icons';
import { blocksOf, codeOf, harmless, type ICode } from '../markdown';
import { IconButton } from './button';
import { useRender } from './host';

/** An answer's Markdown. Blocks that are complete are rendered once, so a long answer stays smooth while it grows. */
export function Markdown(props: { text: string }): JSX.Element {
  const blocks = React.useMemo(() => blocksOf(props.text), [props.text]);
  return (
    <div className="jg-Markdown">
      {blocks.map((block, index) => (
        <Block key={index} text={block} />
      ))}
    </div>
  );
}

const Block = React.memo(function Block({ text }: { text: string }): JSX.Element {
  const code = codeOf(text);
  return code ? <Code code={code} text={text} /> : <Rendered text={text} />;
});

/** One block through JupyterLab's own renderer: sanitised, with highlighted code and formulas. */
function Rendered({ text }: { text: string }): JSX.Element {
  const { rendermime } = useRender();
  const node = React.useRef<HTMLDivElement>(null);
  const renderer = React.useRef<IRenderMime.IRenderer | null>(null);
  React.useLayoutEffect(() => {
    const widget = (renderer.current = rendermime.createRenderer('text/markdown'));
    const host = node.current as HTMLDivElement;
    MessageLoop.sendMessage(widget, Widget.Msg.BeforeAttach);
    host.appendChild(widget.node);
    MessageLoop.sendMessage(widget, Widget.Msg.AfterAttach);
    return () => widget.dispose();
  }, [rendermime]);
  React.useLayoutEffect(() => {
    const model = rendermime.createModel({ data: { 'text/markdown': harmless(text) }, trusted: false });
    void renderer.current?.renderModel(model);
  }, [rendermime, text]);
  return <div ref={node} />;
}

/** A code block with what can be done with it. */
function Code({ code, text }: { code: ICode; text: string }): JSX.Element {
  const { trans, place } = useRender();
  const put = (where: Parameters<typeof place>[1]) => () => place(code.source, where);
  return (
    <div className="jg-Code" role="group" aria-label={trans.__('Code')}>
      <div className="jg-Code-bar">
        <span className="jg-Code-language">{code.language || trans.__('code')}</span>
        <IconButton
          icon={copyIcon}
          label={trans.__('Copy code')}
          onClick={() => void navigator.clipboard.writeText(code.source)}
        />
        <IconButton icon={addAboveIcon} label={trans.__('Insert above')} onClick={put('above')} />
        <IconButton icon={addBelowIcon} label={trans.__('Insert below')} onClick={put('below')} />
        <IconButton icon={replaceIcon} label={trans.__('Replace the active cell')} onClick={put('replace')} />
        <IconButton icon={newNotebookIcon} label={trans.__('New notebook with this code')} onClick={put('new')} />
        <IconButton icon={runIcon} label={trans.__('Insert below and run…')} onClick={put('run')} />
      </div>
      <Rendered text={text} />
    </div>
  );
}
