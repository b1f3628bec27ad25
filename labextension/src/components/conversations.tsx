import { deleteIcon, editIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import type { ISummary } from '../tokens';
import { IconButton } from './button';
import { usePanel } from './host';

/** The saved conversations: search, open, rename, delete. */
export function Conversations({ onClose }: { onClose: () => void }): JSX.Element {
  const { model, trans } = usePanel();
  const [search, setSearch] = React.useState('');
  React.useEffect(() => {
    const timer = window.setTimeout(() => void model.refresh(search), search ? 200 : 0);
    return () => window.clearTimeout(timer);
  }, [model, search]);
  return (
    <nav className="jg-Conversations" aria-label={trans.__('Conversations')}>
      <input
        type="search"
        className="jg-Search"
        autoFocus
        aria-label={trans.__('Search conversations')}
        placeholder={trans.__('Search conversations')}
        value={search}
        onChange={event => setSearch(event.target.value)}
        onKeyDown={event => event.key === 'Escape' && onClose()}
      />
      <ul>
        {model.saved.map(summary => (
          <Entry key={summary.id} summary={summary} onOpened={onClose} />
        ))}
      </ul>
      {!model.saved.length && (
        <p className="jg-Empty-hint">{search ? trans.__('Nothing found.') : trans.__('Nothing saved yet.')}</p>
      )}
    </nav>
  );
}

function Entry({ summary, onOpened }: { summary: ISummary; onOpened: () => void }): JSX.Element {
  const { model, trans } = usePanel();
  const [title, setTitle] = React.useState<string | null>(null);
  const open = () => void model.open(summary.id).then(onOpened);
  const rename = () => {
    if (title !== null) {
      void model.rename(summary.id, title);
    }
    setTitle(null);
  };
  if (title !== null) {
    return (
      <li>
        <input
          className="jg-Search"
          autoFocus
          aria-label={trans.__('New name')}
          value={title}
          onChange={event => setTitle(event.target.value)}
          onBlur={rename}
          onKeyDown={event => {
            if (event.key === 'Enter') {
              rename();
            } else if (event.key === 'Escape') {
              setTitle(null);
            }
          }}
        />
      </li>
    );
  }
  return (
    <li data-current={summary.id === model.current.id}>
      <button type="button" className="jg-Conversation" onClick={open}>
        <span className="jg-Conversation-title">{summary.title || trans.__('Untitled')}</span>
        <span className="jg-Conversation-date">{new Date(1000 * summary.updated).toLocaleString()}</span>
      </button>
      <IconButton
        icon={editIcon}
        label={trans.__('Rename %1', summary.title)}
        onClick={() => setTitle(summary.title)}
      />
      <IconButton
        icon={deleteIcon}
        label={trans.__('Delete %1', summary.title)}
        onClick={() => void model.remove(summary.id)}
      />
    </li>
  );
}
