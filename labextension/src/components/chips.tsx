import { closeIcon, fileIcon, runIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { soundIcon, tableIcon } from '../icons';
import { decode } from '../recorder';
import type { IAttachment } from '../tokens';
import { fromBase64, peaksOf } from '../wav';
import { IconButton } from './button';
import { useRender } from './host';

const BARS = 28;

/** Attachments, each with a preview of what it holds. */
export function Chips(props: { items: IAttachment[]; onRemove?: (item: IAttachment) => void }): JSX.Element | null {
  const { trans } = useRender();
  if (!props.items.length) {
    return null;
  }
  return (
    <ul className="jg-Chips" aria-label={trans.__('Attachments')}>
      {props.items.map(item => (
        <li key={item.id} className="jg-Chip" data-kind={item.kind} title={preview(item)}>
          <Preview item={item} />
          <span className="jg-Chip-words">
            <span className="jg-Chip-name">{item.name}</span>
            <span className="jg-Chip-note">{item.note}</span>
          </span>
          {props.onRemove && (
            <IconButton
              icon={closeIcon}
              label={trans.__('Remove %1', item.name)}
              onClick={() => props.onRemove?.(item)}
            />
          )}
        </li>
      ))}
    </ul>
  );
}

function preview(item: IAttachment): string {
  return (item.text ?? '').split('\n').slice(0, 8).join('\n') || item.name;
}

function Preview({ item }: { item: IAttachment }): JSX.Element {
  if (item.kind === 'image') {
    return <img className="jg-Chip-thumbnail" alt="" src={`data:${item.mime};base64,${item.data}`} />;
  }
  if (item.kind === 'audio') {
    return <Waveform item={item} />;
  }
  const icon = item.kind === 'table' ? tableIcon : fileIcon;
  return <icon.react tag="span" className="jg-Chip-icon" aria-hidden="true" />;
}

/** The shape of a clip; plays it. */
function Waveform({ item }: { item: IAttachment }): JSX.Element {
  const { trans } = useRender();
  const [peaks, setPeaks] = React.useState<number[]>([]);
  React.useEffect(() => {
    let wanted = true;
    decode(fromBase64(item.data ?? '').buffer).then(
      samples => wanted && setPeaks(peaksOf(samples, BARS)),
      () => undefined // the browser does not know this format: no shape, but the model may
    );
    return () => {
      wanted = false;
    };
  }, [item.data]);
  const play = () => void new Audio(`data:${item.mime};base64,${item.data}`).play();
  return (
    <span className="jg-Wave">
      <IconButton icon={runIcon} label={trans.__('Play %1', item.name)} onClick={play} />
      {peaks.length ? (
        <Bars peaks={peaks} />
      ) : (
        <soundIcon.react tag="span" className="jg-Chip-icon" aria-hidden="true" />
      )}
    </span>
  );
}

function Bars({ peaks }: { peaks: number[] }): JSX.Element {
  return (
    <svg className="jg-Wave-bars" viewBox={`0 0 ${3 * peaks.length} 20`} aria-hidden="true">
      {peaks.map((peak, index) => {
        const height = Math.max(1.5, 18 * peak);
        return <rect key={index} x={3 * index} y={10 - height / 2} width="2" height={height} rx="1" />;
      })}
    </svg>
  );
}
