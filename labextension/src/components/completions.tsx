import * as React from 'react';
import { triggerAt, type ITrigger } from '../mentions';
import { usePanel, type ICandidate } from './host';

export interface ICompletions {
  items: ICandidate[];
  active: number;
  trigger: ITrigger | null;
  /** Handle a key; whether it was one for us. */
  onKey: (event: React.KeyboardEvent) => boolean;
  choose: (item: ICandidate) => void;
}

/** What can be completed at the caret. `replace` puts text where the trigger stands. */
export function useCompletions(
  text: string,
  caret: number,
  replace: (trigger: ITrigger, insert: string) => void
): ICompletions {
  const { candidates } = usePanel();
  const trigger = React.useMemo(() => triggerAt(text, caret), [text, caret]);
  const [items, setItems] = React.useState<ICandidate[]>([]);
  const [active, setActive] = React.useState(0);
  const key = trigger ? `${trigger.sign}${trigger.query}` : '';
  React.useEffect(() => {
    let wanted = true;
    const found = key ? candidates(key[0] as '@' | '/', key.slice(1)) : Promise.resolve([]);
    void found.then(list => {
      if (wanted) {
        setItems(list);
        setActive(0);
      }
    });
    return () => {
      wanted = false;
    };
  }, [key, candidates]);
  const choose = (item: ICandidate) => {
    if (trigger) {
      replace(trigger, item.insert);
      setItems([]);
    }
  };
  const onKey = (event: React.KeyboardEvent): boolean => {
    const step = { ArrowDown: 1, ArrowUp: items.length - 1 }[event.key];
    if (!items.length) {
      return false;
    } else if (step) {
      setActive((active + step) % items.length);
    } else if (event.key === 'Tab' || event.key === 'Enter') {
      choose(items[active]);
    } else if (event.key === 'Escape') {
      setItems([]);
    } else {
      return false;
    }
    event.preventDefault();
    return true;
  };
  return { items, active, trigger, onKey, choose };
}

export const LIST_ID = 'jg-completions';

/** The list above the composer. */
export function CompletionList({ items, active, choose }: ICompletions): JSX.Element | null {
  const { trans } = usePanel();
  const chosen = React.useRef<HTMLLIElement>(null);
  React.useEffect(() => {
    void chosen.current?.scrollIntoView({ block: 'nearest' });
  }, [active, items]);
  return items.length ? (
    <ul className="jg-Completions" id={LIST_ID} role="listbox" aria-label={trans.__('Suggestions')}>
      {items.map((item, index) => (
        <li
          key={item.insert}
          id={`${LIST_ID}-${index}`}
          ref={index === active ? chosen : null}
          role="option"
          aria-selected={index === active}
          onMouseDown={event => {
            event.preventDefault(); // the caret stays in the text
            choose(item);
          }}
        >
          <span className="jg-Completion-label">{item.label}</span>
          <span className="jg-Completion-detail">{item.detail}</span>
        </li>
      ))}
    </ul>
  ) : null;
}
