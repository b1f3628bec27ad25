/** React and what lives outside of it. */
import type { ISignal } from '@lumino/signaling';
import * as React from 'react';

/** Render again when `signal` is emitted: at once, or at most once in `pause` ms. */
export function useSignal<T, U>(signal: ISignal<T, U>, pause = 0): void {
  const [, tick] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    let timer = 0;
    const later = () => {
      timer = 0;
      tick();
    };
    const slot = () => {
      if (!pause) {
        tick();
      } else if (!timer) {
        timer = window.setTimeout(later, pause);
      }
    };
    signal.connect(slot);
    return () => {
      signal.disconnect(slot);
      window.clearTimeout(timer);
    };
  }, [signal, pause]);
}

/** A function that keeps its identity and always sees the newest values. */
export function useEvent<A extends unknown[], R>(handler: (...values: A) => R): (...values: A) => R {
  const latest = React.useRef(handler);
  React.useLayoutEffect(() => {
    latest.current = handler;
  });
  return React.useCallback((...values: A) => latest.current(...values), []);
}
