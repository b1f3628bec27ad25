import { ReactWidget, deleteIcon } from '@jupyterlab/ui-components';
import type { IRenderMime } from '@jupyterlab/rendermime';
import * as React from 'react';
import { progressWords } from '../answer';
import { Answer } from '../components/answer';
import { IconButton } from '../components/button';
import { useSignal } from '../components/hooks';
import { RenderContext, type IRenderHost } from '../components/host';
import type { OutputAnswers } from '../ask';
import { stopIcon, toMarkdownIcon } from '../icons';
import { ANSWER_MIME, type ISavedAnswer } from '../outputs';

export interface IAnswerHost extends IRenderHost {
  answers: OutputAnswers;
  remove(node: HTMLElement): void;
  toMarkdown(node: HTMLElement): void;
}

/** Shows a saved answer among a cell's outputs. */
export class AnswerRenderer extends ReactWidget implements IRenderMime.IRenderer {
  constructor(private readonly _host: IAnswerHost) {
    super();
    this.addClass('jg-OutputAnswer');
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._answer = model.data[ANSWER_MIME] as unknown as ISavedAnswer;
    this.update();
    await this.renderPromise;
  }

  protected render(): JSX.Element | null {
    return this._answer ? (
      <RenderContext.Provider value={this._host}>
        <View host={this._host} answer={this._answer} node={this.node} />
      </RenderContext.Provider>
    ) : null;
  }

  private _answer: ISavedAnswer | null = null;
}

function View(props: { host: IAnswerHost; answer: ISavedAnswer; node: HTMLElement }): JSX.Element {
  const { answers, trans, remove, toMarkdown } = props.host;
  const { answer, node } = props;
  useSignal(answers.changed);
  const running = answers.isRunning(answer.id);
  const progress = answers.progressOf(answer.id);
  const waiting = progress ? progressWords(progress) : trans.__('reading…');
  const ended = running || answer.finish || answer.error ? answer : { ...answer, finish: 'cancelled' as const };
  return (
    <Answer answer={ended} running={running} waiting={waiting}>
      {running ? (
        <IconButton icon={stopIcon} label={trans.__('Stop')} onClick={() => answers.stop(answer.id)} />
      ) : (
        <>
          <IconButton
            icon={toMarkdownIcon}
            label={trans.__('Move to a Markdown cell')}
            onClick={() => toMarkdown(node)}
          />
          <IconButton icon={deleteIcon} label={trans.__('Remove this answer')} onClick={() => remove(node)} />
        </>
      )}
    </Answer>
  );
}
