import type { LabIcon } from '@jupyterlab/ui-components';
import * as React from 'react';

export interface IIconButtonProps {
  icon: LabIcon;
  label: string;
  onClick: (event: React.MouseEvent<HTMLElement>) => void;
  disabled?: boolean;
  pressed?: boolean;
  className?: string;
}

/** A button that shows an icon and says its name to everyone who cannot see it. */
export function IconButton(props: IIconButtonProps): JSX.Element {
  return (
    <button
      type="button"
      className={`jg-IconButton ${props.className ?? ''}`}
      title={props.label}
      aria-label={props.label}
      aria-pressed={props.pressed}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      <props.icon.react tag="span" aria-hidden="true" />
    </button>
  );
}
