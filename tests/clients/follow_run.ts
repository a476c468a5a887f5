/**
 * Starts a run, follows it, approves whatever is asked and resumes it then, and prints what it saw.
 *
 * It knows of the wire what the clients of the TypeScript original know: events come as blocks that end with an empty
 * line; of a block only the first line that begins with "data: " counts; a decision is followed by a resume.
 *
 *     node follow_run.js URL TOKEN WORKFLOW_PATH INPUT
 */

interface RunEvent {
  type: string;
  runId: string;
  timestampMs: number;
  nodeId?: string;
  iteration?: number;
}

interface Run {
  runId: string;
  status: string;
  output: unknown;
}

declare const process: { argv: string[] };

class GatewayClient {
  constructor(
    private readonly baseUrl: string,
    private readonly token: string,
  ) {}

  async call<Answer>(method: "GET" | "POST", path: string, body?: unknown): Promise<Answer> {
    const response = await fetch(`${this.baseUrl}${path}`, {
      method,
      headers: { ...this.headers(), "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const answer: any = await response.json();
    if (!response.ok) {
      throw new Error(`${method} ${path}: ${response.status} ${answer.error.code}: ${answer.error.message}`);
    }
    return answer;
  }

  async *events(runId: string): AsyncGenerator<RunEvent> {
    const response = await fetch(`${this.baseUrl}/v1/runs/${encodeURIComponent(runId)}/events`, {
      headers: { ...this.headers(), Accept: "text/event-stream" },
    });
    if (!response.ok || response.body === null) {
      throw new Error(`GET events: ${response.status}`);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop() ?? "";
      for (const block of blocks) {
        const line = block.split("\n").find((candidate) => candidate.startsWith("data: "));
        if (line !== undefined) {
          yield JSON.parse(line.slice("data: ".length)) as RunEvent;
        }
      }
    }
  }

  private headers(): Record<string, string> {
    return { Authorization: `Bearer ${this.token}` };
  }
}

const [baseUrl, token, workflowPath, input] = process.argv.slice(2);
const client = new GatewayClient(baseUrl, token);
const { runId } = await client.call<{ runId: string }>("POST", "/v1/runs", { workflowPath, input: JSON.parse(input) });
const seen: RunEvent[] = [];
for await (const event of client.events(runId)) {
  seen.push(event);
  if (event.type === "NodeWaitingApproval" && event.nodeId !== undefined) {
    const node = `/v1/runs/${runId}/nodes/${encodeURIComponent(event.nodeId)}`;
    await client.call("POST", `${node}/approve`, { iteration: event.iteration, decidedBy: "a client" });
    await client.call("POST", `/v1/runs/${runId}/resume`, { workflowPath, input: {} });
  }
}
const run = await client.call<Run>("GET", `/v1/runs/${runId}`);
console.log(JSON.stringify({ run, events: seen }));
export {};
