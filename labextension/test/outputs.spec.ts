import { describe, expect, it } from 'vitest';
import { answerOutput, type ISavedAnswer } from '../src/outputs';

const ANSWER: ISavedAnswer = {
  id: 'a',
  action: 'explain',
  about: 'picture',
  text: '**Up** ![x](http://host/p.png) <img src=http://host/q>',
  thinking: '',
  model: 'big',
  notice: 'Often wrong.'
};

describe('the output that is saved for an answer', () => {
  it('shows elsewhere as Markdown that loads nothing', () => {
    const { data } = answerOutput(ANSWER);
    expect(data['text/markdown']).toBe(
      '**Up** [x](http://host/p.png) < img src=http://host/q>\n\n*big · Often wrong.*'
    );
    expect(data['text/plain']).toBe(ANSWER.text);
  });
});
