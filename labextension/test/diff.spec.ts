import { describe, expect, it } from 'vitest';
import { applied, diffLines } from '../src/diff';

const kinds = (before: string, after: string) =>
  diffLines(before, after)
    .map(line => ({ same: ' ', added: '+', removed: '-' })[line.kind] + line.text)
    .join('|');

describe('diffLines', () => {
  it.each([
    ['a\nb', 'a\nb', ' a| b'],
    ['a\nb\nc', 'a\nX\nc', ' a|-b|+X| c'],
    ['a', 'a\nb', ' a|+b'],
    ['a\nb', 'b', '-a| b'],
    ['', 'a', '-|+a']
  ])('%j to %j', (before, after, wanted) => {
    expect(kinds(before, after)).toBe(wanted);
  });

  it('gives the new text and holds all of the old one', () => {
    const random = (seed: number) => Array.from({ length: 20 }, (_, i) => 'abc'[(seed * (i + 3) ** 2) % 3]).join('\n');
    for (let seed = 1; seed < 30; seed++) {
      const [before, after] = [random(seed), random(seed + 7)];
      const lines = diffLines(before, after);
      expect(applied(lines)).toBe(after);
      const kept = lines.filter(line => line.kind !== 'added').map(line => line.text);
      expect(kept.join('\n')).toBe(before);
    }
  });
});
