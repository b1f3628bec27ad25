import type { ISessionContext } from '@jupyterlab/apputils';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Kernel } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';
import { describe, expect, it, vi } from 'vitest';
import { listen, type IInsertion, type INotebooks } from '../src/insertion';

type Target = (comm: Kernel.IComm, message: unknown) => Promise<void>;

/** A connection to a kernel; `open` is what it does when Python opens a comm. */
class FakeKernel {
  readonly id = 'kernel';
  targets = new Map<string, Target>();
  sent: unknown[] = [];

  constructor(readonly handleComms = true) {}

  registerCommTarget(name: string, target: Target): void {
    this.targets.set(name, target);
  }

  async open(data: IInsertion): Promise<void> {
    const comm = { send: (value: unknown) => this.sent.push(value) } as unknown as Kernel.IComm;
    await this.targets.get('jupyter_gemma.cells')?.(comm, { content: { data } });
  }
}

/** Something open on `kernel`, where that kernel's notebook has the cells `ids`. */
function opened(kernel: FakeKernel | null, ids: string[]) {
  const context = { session: kernel && { kernel }, kernelChanged: new Signal<object, unknown>({}) };
  const panel = {} as NotebookPanel;
  const place = vi.fn<INotebooks['place']>(async () => undefined);
  const find: INotebooks['find'] = (id, cell) => (id === 'kernel' && ids.includes(cell) ? panel : undefined);
  listen(context as unknown as ISessionContext, { find, place });
  return { panel, place, kernelChanged: context.kernelChanged };
}

const hasFocus = vi.spyOn(document, 'hasFocus').mockReturnValue(true);

describe('cells that the kernel asks for', () => {
  it('says that the cell is here, and places nothing yet', async () => {
    const kernel = new FakeKernel();
    const { place } = opened(kernel, ['a']);
    await kernel.open({ cell: 'a' });
    expect(kernel.sent).toEqual([{ here: true }]);
    expect(place).not.toHaveBeenCalled();
  });

  it('leaves a cell alone that stands in no notebook here', async () => {
    const kernel = new FakeKernel();
    const { place } = opened(kernel, ['a']);
    await kernel.open({ cell: 'b' });
    await kernel.open({ cell: 'b', cell_type: 'code', source: 'x = 1' });
    expect(kernel.sent).toEqual([]);
    expect(place).not.toHaveBeenCalled();
  });

  it('places a cell in the page where the button was pressed, and in no other', async () => {
    const kernel = new FakeKernel();
    const { panel, place } = opened(kernel, ['a']);
    const asked: IInsertion = { cell: 'a', cell_type: 'code', source: 'x = 1' };
    hasFocus.mockReturnValue(false);
    await kernel.open(asked);
    expect(place).not.toHaveBeenCalled();
    hasFocus.mockReturnValue(true);
    await kernel.open(asked);
    expect(place.mock.calls).toEqual([[panel, asked]]);
    expect(kernel.sent).toEqual([]);
  });

  it('does not listen where something else gets the comms', () => {
    const kernel = new FakeKernel(false);
    opened(kernel, ['a']);
    expect(kernel.targets.size).toBe(0);
  });

  it('listens to the kernel that is chosen later', async () => {
    const { kernelChanged, place } = opened(null, ['a']);
    const next = new FakeKernel();
    kernelChanged.emit({ newValue: next });
    kernelChanged.emit({ newValue: null });
    await next.open({ cell: 'a', cell_type: 'markdown', source: 'Words.' });
    expect(place).toHaveBeenCalledOnce();
  });
});
