/** `@` mentions and `/` commands in what a user types. Pure. */

/** Something that a mention names. */
export type Mention =
  | { kind: 'variable'; text: string; expression: string }
  | { kind: 'cell' | 'output'; text: string; number: number }
  | { kind: 'selection' | 'notebook'; text: string }
  | { kind: 'file'; text: string; path: string };

/** What stands left of the caret and can be completed. */
export interface ITrigger {
  sign: '@' | '/';
  query: string;
  from: number;
}

// A mention begins a word, so that an address (me@example.org) or a decorator in code is none.
const MENTION = /(?<=^|[\s(,;:])@(file:[^\s,;)]+|cell:\d+|output:\d+|[A-Za-z_][\w.]*(?:\[[^\]\s]*\])*)/g;
const FENCE = /```[\s\S]*?(?:```|$)|`[^`\n]*`/g;

/** The mentions in `text`, in their order; what stands in code is left alone. */
export function mentionsIn(text: string): Mention[] {
  const blank = text.replace(FENCE, code => ' '.repeat(code.length));
  const seen = new Map<string, Mention>();
  for (const match of blank.matchAll(MENTION)) {
    const name = match[1].replace(/[.:]+$/, '');
    if (!seen.has(name)) {
      seen.set(name, mention(name));
    }
  }
  return [...seen.values()];
}

function mention(name: string): Mention {
  const text = `@${name}`;
  const [head, ...rest] = name.split(':');
  const tail = rest.join(':');
  if (head === 'file' && tail) {
    return { kind: 'file', text, path: tail };
  }
  if ((head === 'cell' || head === 'output') && tail) {
    return { kind: head, text, number: Number(tail) };
  }
  if (name === 'selection' || name === 'notebook') {
    return { kind: name, text };
  }
  return { kind: 'variable', text, expression: name };
}

/** `text` with its mentions as plain names, or without them. */
export function withoutSigns(text: string, mentions: Mention[], drop: boolean): string {
  let plain = text;
  for (const { text: sign } of mentions) {
    plain = plain.split(sign).join(drop ? '' : sign.slice(1));
  }
  return drop ? plain.replace(/ {2,}/g, ' ').trim() : plain;
}

/** The mention or command that the caret stands in, if any. A command is the first word of the text. */
export function triggerAt(text: string, caret: number): ITrigger | null {
  const before = text.slice(0, caret);
  const match = /(?:^|[\s(,;:])(@[\w.:/\-[\]]*)$/.exec(before);
  if (match) {
    return { sign: '@', query: match[1].slice(1), from: caret - match[1].length };
  }
  const command = /^\/(\w*)$/.exec(before);
  return command ? { sign: '/', query: command[1], from: 0 } : null;
}

/** A command and what follows it: `/explain @fig` -> ["explain", "@fig"]; null without one. */
export function commandOf(text: string): { name: string; rest: string } | null {
  const match = /^\/(\w+)(?:\s+([\s\S]*))?$/.exec(text.trim());
  return match ? { name: match[1], rest: (match[2] ?? '').trim() } : null;
}

/** The names that contain `query`, those that begin with it first. */
export function matching<T>(items: T[], query: string, nameOf: (item: T) => string): T[] {
  const wanted = query.toLowerCase();
  const rank = (item: T): number => {
    const name = nameOf(item).toLowerCase();
    return name.startsWith(wanted) ? 0 : name.includes(wanted) ? 1 : 2;
  };
  return items.filter(item => rank(item) < 2).sort((a, b) => rank(a) - rank(b));
}
