# What the tests, and the sample application, need of Plug, which is no dependency: the calls that are made, with the
# shapes they have there.
defmodule Plug.Conn do
  @moduledoc false

  defstruct method: "GET",
            path_info: [],
            req_headers: [],
            before_send: [],
            resp_headers: [],
            protocol: :"HTTP/1.1",
            status: nil,
            file: nil,
            halted: false

  def register_before_send(conn, function),
    do: %{conn | before_send: [function | conn.before_send]}

  def get_http_protocol(conn), do: conn.protocol

  def get_req_header(conn, name), do: for({^name, value} <- conn.req_headers, do: value)

  def put_resp_header(conn, name, value),
    do: %{conn | resp_headers: List.keystore(conn.resp_headers, name, 0, {name, value})}

  def send_file(conn, status, path), do: %{conn | status: status, file: path}

  def halt(conn), do: %{conn | halted: true}
end

defmodule MIME do
  @moduledoc false

  @types %{".js" => "text/javascript", ".css" => "text/css"}

  def from_path(path), do: Map.get(@types, Path.extname(path), "application/octet-stream")
end
